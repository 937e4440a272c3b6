"""Configurations of decoders and encoders by name, without their weights and, for the usual ones, without a network.

What a published model's files take follows from its configuration: parameters x bytes of the type they are in.
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SiglipConfig,
)

from utils.commands import UsageError
from utils.model.configuration_visual_chat import OWN_VISION_CONFIGS, QwenVisionConfig
from utils.model.pretrained_encoders import is_architecture, vision_config_of
from utils.model.sizes import LLAMA_2
from utils.model.vision import vision_family


def _decoder(
    kind: Callable[..., PreTrainedConfig],
    words: int,
    width: int,
    mlp: int,
    layers: int,
    heads: int,
    kv: int,
    **more: Any,
) -> partial[PreTrainedConfig]:
    """A decoder by its vocabulary, widths, layers and heads, and those of its keys and values."""
    shape = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers}
    shape |= {"vocab_size": words, "num_attention_heads": heads, "num_key_value_heads": kv}
    return partial(kind, dtype="bfloat16", **shape, **more)


_LLAMA_3_8B = _decoder(LlamaConfig, 128256, 4096, 14336, 32, 32, 8)
_LLAMA_3_70B = _decoder(LlamaConfig, 128256, 8192, 28672, 80, 64, 8)

DECODERS: dict[str, Callable[[], PreTrainedConfig]] = {
    **{
        f"llama-2-{size.lower()}": partial(LlamaConfig, vocab_size=32000, dtype="float16", **shape)
        for size, shape in LLAMA_2.items()
    },
    "llama-3-8b": _LLAMA_3_8B,
    "llama-3-70b": _LLAMA_3_70B,
    "llama-3.1-8b": _LLAMA_3_8B,  # of the same shapes, with another scale of positions
    "llama-3.1-70b": _LLAMA_3_70B,
    "mistral-7b": _decoder(MistralConfig, 32000, 4096, 14336, 32, 32, 8),
    "qwen2.5-7b": _decoder(Qwen2Config, 152064, 3584, 18944, 28, 28, 4),
    "qwen3-1.7b": _decoder(
        Qwen3Config, 151936, 2048, 6144, 28, 16, 8, head_dim=128, tie_word_embeddings=True
    ),
    "qwen3-4b": _decoder(Qwen3Config, 151936, 2560, 9728, 36, 32, 8, head_dim=128, tie_word_embeddings=True),
    "qwen3-8b": _decoder(Qwen3Config, 151936, 4096, 12288, 36, 32, 8, head_dim=128),
}
"""Published decoders, from their config.json: shapes, and the type of their weights."""


def _clip(text: int, text_heads: int, **vision: int) -> partial[CLIPConfig]:
    """A CLIP by its text encoder's width and heads (12 layers), and the shapes of its encoder."""
    words = dict(hidden_size=text, intermediate_size=4 * text, num_attention_heads=text_heads)
    return partial(CLIPConfig, text_config=words, vision_config=vision, projection_dim=text)


def _siglip(words: int, wide: bool, **vision: int) -> partial[SiglipConfig]:
    """A SigLIP of base size or (wide) of so400m's, in both of its encoders; words: rows of its vocabulary."""
    shape: dict[str, int] = {}
    if wide:
        shape = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16)
    return partial(
        SiglipConfig,
        text_config={"vocab_size": words, "bos_token_id": None, "eos_token_id": None, **shape},
        vision_config={**shape, **vision},
    )


_VIT_L = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
)

ENCODERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "clip-vit-base-patch16": _clip(512, 8, patch_size=16),
    "clip-vit-large-patch14": _clip(768, 12, **_VIT_L, image_size=224),
    "clip-vit-large-patch14-336": _clip(768, 12, **_VIT_L, image_size=336),
    "siglip-so400m-patch14-384": _siglip(32000, True, image_size=384, patch_size=14),
    "siglip2-base-patch16-256": _siglip(256000, False, image_size=256),
    "siglip2-so400m-patch16-256": _siglip(256000, True, image_size=256),
    "siglip2-so400m-patch16-384": _siglip(256000, True, image_size=384),
    "dinov2-large": partial(Dinov2Config, **_VIT_L, image_size=518, input_size=224),
    "dinov3-vitl16-pretrain-lvd1689m": partial(
        DINOv3ViTConfig, **{**_VIT_L, "patch_size": 16}, image_size=224, num_register_tokens=4
    ),
    "qwen-vl-vit": partial(QwenVisionConfig, dtype="bfloat16"),
}
"""Published models that hold an encoder, with what else is in their files; those of open_clip are known by their own
names and tags (ViT-bigG-14/laion2b_s39b_b160k)."""

_ENDINGS = re.compile(r"(-hf|-chat|-instruct|-base|-v0\.\d|-it)+$")


def decoder_config(name: str) -> PreTrainedConfig:
    """A decoder's configuration: a known name (with or without its organisation), a folder, or a hub name.

    Raises `UsageError` where it cannot be had.
    """
    known = DECODERS.get(_plain(name))
    if known is not None and not Path(name).is_dir():
        return known()
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise _unknown("lm_model_name_or_path", name, DECODERS, error) from error


def encoder_config(name: str) -> PreTrainedConfig:
    """An encoder's configuration, likewise; open_clip's too."""
    known = _known_encoder(name)
    if known is not None:
        whole = known()
        return getattr(whole, "vision_config", whole)
    try:
        return vision_config_of(name)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        known_names = [*ENCODERS, "ViT-bigG-14/laion2b_s39b_b160k and others of open_clip"]
        raise _unknown("vision_model_name_or_path", name, known_names, error) from error


def decoder_size(name: str) -> int:
    """Bytes of a published decoder's weights, by its configuration; a tied head counts once."""
    return _size(decoder_config(name), AutoModelForCausalLM)


def encoder_size(name: str) -> int:
    """Bytes of the weights in a published encoder's files, a text encoder beside it included.

    Of open_clip's models the encoder alone is known.
    """
    known = _known_encoder(name)
    if known is not None:
        return _size(known(), AutoModel)
    config = encoder_config(name)
    if config.model_type in OWN_VISION_CONFIGS:
        with torch.device("meta"):
            return _bytes(vision_family(config).model._from_config(config), torch.float32)
    return _size(AutoConfig.from_pretrained(name), AutoModel)


def _known_encoder(name: str) -> Callable[[], PreTrainedConfig] | None:
    return None if Path(name).is_dir() else ENCODERS.get(_plain(name))


def _size(config: PreTrainedConfig, kind: type[AutoModel] | type[AutoModelForCausalLM]) -> int:
    dtype = config.dtype or torch.float32  # transformers' type where a configuration does not say
    with torch.device("meta"):
        return _bytes(kind.from_config(config), dtype)


def _bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def _plain(name: str) -> str:
    """meta-llama/Llama-2-7b-chat-hf -> llama-2-7b."""
    short = name.rstrip("/").split("/")[-1].lower().replace("meta-llama-", "llama-")
    return _ENDINGS.sub("", short)


def _unknown(flag: str, name: str, known: Iterable[str], error: Exception) -> UsageError:
    if Path(name, "config.json").is_file() or is_architecture(name):
        return UsageError(f"--{flag} {name}: {str(error).splitlines()[0]}")
    offline = " while HF_HUB_OFFLINE is set" if is_offline_mode() else ""
    return UsageError(
        f"--{flag} {name}: no folder with a config.json, and no configuration can be fetched{offline}; known without"
        f" either are {', '.join(known)}"
    )
