"""Configurations of decoders and encoders by name, without their weights and, for the usual ones, without a network."""

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

from utils.commands import UsageError
from utils.model.configuration_visual_chat import QwenVisionConfig
from utils.model.sizes import CLIP_L, LLAMA_2
from utils.model.vision import vision_config_of

DECODERS = {
    "llama-2-7b": partial(LlamaConfig, vocab_size=32000, **LLAMA_2["7B"]),
    "llama-2-13b": partial(LlamaConfig, vocab_size=32000, **LLAMA_2["13B"]),
    "llama-2-70b": partial(LlamaConfig, vocab_size=32000, **LLAMA_2["70B"]),
    "llama-3-8b": partial(
        LlamaConfig,
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "llama-3-70b": partial(
        LlamaConfig,
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
    "mistral-7b": partial(
        MistralConfig,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "qwen2.5-7b": partial(
        Qwen2Config,
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    ),
    "qwen3-8b": partial(
        Qwen3Config,
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    ),
}
"""Shapes of published decoders, from their config.json."""

ENCODERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "clip-vit-base-patch16": partial(
        CLIPVisionConfig,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        patch_size=16,
    ),
    "clip-vit-large-patch14": partial(CLIPVisionConfig.from_dict, CLIP_L.to_dict()),
    "clip-vit-large-patch14-336": partial(
        CLIPVisionConfig.from_dict, {**CLIP_L.to_dict(), "image_size": 336}
    ),
    "siglip-so400m-patch14-384": partial(
        SiglipVisionConfig,
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    ),
    "qwen-vl-vit": QwenVisionConfig,
}
"""Shapes of published encoders; those of open_clip are known by their own names (ViT-bigG-14)."""

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
        raise _unknown("lm_model_name_or_path", name, DECODERS) from error


def encoder_config(name: str) -> PreTrainedConfig:
    """An encoder's configuration, likewise; open_clip's too."""
    known = ENCODERS.get(_plain(name))
    if known is not None and not Path(name).is_dir():
        return known()
    try:
        return vision_config_of(name)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise _unknown("vision_model_name_or_path", name, [*ENCODERS, "ViT-bigG-14"]) from error


def _plain(name: str) -> str:
    """meta-llama/Llama-2-7b-chat-hf -> llama-2-7b."""
    short = name.rstrip("/").split("/")[-1].lower().replace("meta-llama-", "llama-")
    return _ENDINGS.sub("", short)


def _unknown(flag: str, name: str, known: Iterable[str]) -> UsageError:
    return UsageError(
        f"--{flag} {name}: no folder with a config.json, and no configuration can be fetched; known without either"
        f" are {', '.join(known)}"
    )
