"""Join a pretrained decoder, a pretrained encoder and a new projector into a model that can learn to see."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import deepspeed_config

from .configuration_visual_chat import IMAGE_SUMMARIES, VisualChatConfig
from .decoder_check import check_computes_mmca, outside_zero3
from .freezing import PUBLISHED, freeze, of_base_models
from .loading import grow_vocabulary, load_decoder
from .lora import LoraSettings, inject_lora
from .loss import Head
from .mmca import ImageGate
from .modeling_visual_chat import VisualChatForConditionalGeneration
from .open_clip_files import LOCAL_FOLDER
from .processing_visual_chat import VisualChatProcessor
from .projector import build_projector
from .projector import image_seq_length as tokens_per_image
from .vision import load_image_processor, load_vision_tower, vision_config_of

logger = logging.getLogger(__name__)

IMAGE_TOKEN, IMAGE_SUMMARY_TOKEN = "<image>", "<image_summary>"


def build_visual_chat(
    language_model: str,
    vision_model: str,
    projector_type: str = "linear",
    attention: str = "mmca",
    image_layers: str = "full",
    image_gate: str = "none",
    image_summary: str = "none",
    lora: LoraSettings | None = None,
    dtype: torch.dtype | str | None = None,
    image_seq_length: int | None = None,
    train: Sequence[str] = PUBLISHED,
    frozen_bits: int = 0,
) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    """Model and processor from two folders (or hub names) in Hugging Face format.

    Adds the image token (with `image_summary` "mean" that of summaries too, and a padding token where there is none),
    unties the head, freezes everything but what `train` names (see `freezing`). image_seq_length: tokens of one image;
    follows from encoder and projector, and a number that differs is an error. frozen_bits: 4 or 8 for a decoder whose
    layers are quantised; 0 for none. Works inside DeepSpeed's ZeRO-3 (an `HfDeepSpeedConfig` alive): each process then
    holds its part of the weights.
    """
    seed = int(torch.randint(2**31, ()))  # new weights depend on it alone, however many processes share them
    processor = build_processor(language_model, vision_model, projector_type, image_summary)
    tokenizer, length = processor.tokenizer, processor.image_seq_length
    if image_seq_length not in (None, length):
        raise ValueError(
            f"image_seq_length is {image_seq_length}, but {vision_model} with the {projector_type} projector"
            f" gives {length} tokens an image; leave it out"
        )
    if attention != "causal":
        check_computes_mmca(AutoConfig.from_pretrained(language_model), attention, image_layers)
    decoder = load_decoder(language_model, dtype, frozen_bits)
    base_vocabulary = decoder.config.vocab_size
    grow_vocabulary(decoder, len(tokenizer))
    tower = load_vision_tower(vision_model, decoder.dtype)
    config = VisualChatConfig(
        vision_config=tower.config,
        text_config=decoder.config,
        projector_type=projector_type,
        attention=attention,
        image_layers=image_layers,
        image_gate=image_gate,
        image_token_id=processor.image_token_id,
        image_summary_token_id=processor.image_summary_token_id,
        image_seq_length=length,
        lora=asdict(lora) if lora else None,
        frozen_from={
            "language_model": _lasting(language_model),
            "vision_model": _lasting(vision_model),
            "vocab_size": base_vocabulary,
        },
        trained_parts=of_base_models(train),
        dtype=decoder.dtype,
    )
    with _seeded(seed):
        projector, gate = _new_parts(config, decoder)
    model = _joined(config, tower, projector, decoder, gate)
    model.generation_config = _generation_config(processor)
    if lora:
        with _seeded(seed + 1):
            inject_lora(model, lora)
    freeze(model, train)
    return model, processor


def build_processor(
    language_model: str, vision_model: str, projector_type: str = "linear", image_summary: str = "none"
) -> VisualChatProcessor:
    """The processor that `build_visual_chat` makes for the same folders; no weights are read."""
    for path in (language_model, vision_model):
        _refuse_missing_folder(path)
    if image_summary not in IMAGE_SUMMARIES:
        raise ValueError(f"image_summary is {image_summary!r}; choose one of {', '.join(IMAGE_SUMMARIES)}")
    summary = IMAGE_SUMMARY_TOKEN if image_summary == "mean" else None
    return VisualChatProcessor(
        load_image_processor(vision_model),
        _tokenizer_with(language_model, [IMAGE_TOKEN, summary] if summary else [IMAGE_TOKEN]),
        image_seq_length=tokens_per_image(projector_type, vision_config_of(vision_model)),
        image_token=IMAGE_TOKEN,
        image_summary_token=summary,
    )


def _tokenizer_with(path: str, tokens: list[str]) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(path)
    if missing := [token for token in tokens if token not in tokenizer.get_vocab()]:
        tokenizer.add_special_tokens({"additional_special_tokens": missing})
        for token in missing:
            logger.info("added the token %s as id %d", token, tokenizer.convert_tokens_to_ids(token))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        logger.info("padding with %s", tokenizer.pad_token)
    return tokenizer


def _refuse_missing_folder(path: str) -> None:
    """A path that is none would be looked up as a hub name, and the error would be about that."""
    folder = path.removeprefix(LOCAL_FOLDER)
    is_path = folder.startswith((".", "/", "~")) or folder.count("/") > 1 or folder != path
    if is_path and not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}; give a folder in Hugging Face format, or a hub name")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from a seed of their own; those outside go on as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _lasting(path: str) -> str:
    """A reference that holds from any folder: an absolute path, or a hub name as it is."""
    prefix = LOCAL_FOLDER if path.startswith(LOCAL_FOLDER) else ""
    folder = Path(path.removeprefix(prefix))
    return prefix + str(folder.resolve()) if folder.exists() else path


def _new_parts(config: VisualChatConfig, decoder: PreTrainedModel) -> tuple[nn.Module, ImageGate | None]:
    """A projector in the decoder's precision and, where there is one, a gate; made in parts where ZeRO-3 partitions."""
    context = nullcontext()
    if is_deepspeed_zero3_enabled():
        try:
            import deepspeed
        except ImportError as error:
            raise ImportError("ZeRO-3 needs the package deepspeed: pip install deepspeed") from error
        context = deepspeed.zero.Init(config_dict_or_path=deepspeed_config())
    with context, torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            torch.initial_seed()
        )  # the same start however many random numbers loading has drawn
        projector = build_projector(
            config.projector_type, config.vision_config, config.text_config.hidden_size
        )
        gate = ImageGate(decoder.config) if config.image_gate == "head" else None
    if not is_deepspeed_zero3_enabled():
        projector = projector.to(decoder.device, decoder.dtype)
        gate = gate and gate.to(decoder.device)
    return projector, gate


def _joined(
    config: VisualChatConfig,
    tower: PreTrainedModel,
    projector: nn.Module,
    decoder: PreTrainedModel,
    gate: ImageGate | None,
) -> VisualChatForConditionalGeneration:
    """The model of parts that exist already, perhaps partitioned over processes: nothing is initialised or copied."""
    with outside_zero3(), torch.device("meta"):
        model = VisualChatForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.multi_modal_projector = projector
    model.model.language_model = decoder.base_model
    model.model.image_gate = gate
    model.lm_head = Head.of(decoder.get_output_embeddings())
    return model


def _generation_config(processor: VisualChatProcessor) -> GenerationConfig:
    """Greedy, up to the EOS that closes an answer; what stands for images is never an answer."""
    tokenizer = processor.tokenizer
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=processor.placeholder_ids,
        do_sample=False,
    )
