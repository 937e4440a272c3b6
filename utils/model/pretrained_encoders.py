"""Pretrained encoders, by folder or name: in transformers' form, or in that of a library that has registered itself."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    Dinov2Config,
    DINOv3ViTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import cached_file, logging

from .configuration_visual_chat import OWN_VISION_CONFIGS
from .vision import FAMILIES, unsupported, vision_family

OPEN_CLIP_CONFIG = "open_clip_config.json"
LOCAL_FOLDER, HUB = PREFIXES = ("local-dir:", "hf-hub:")
"""How open_clip's names may begin."""

_HINT = "give a folder or hub name of a CLIP, SigLIP, DINO or open_clip's, or what helper.extract_qwen_vl has written"


@dataclass(frozen=True)
class EncoderSource:
    """What a folder or name holds: an encoder in transformers' form, or one that another library reads.

    weights: the state dict for a model without data. image_processor: the encoder's preprocessing.
    """

    config: PreTrainedConfig
    weights: Callable[[nn.Module], dict[str, torch.Tensor]] | None = None
    image_processor: Callable[[], BaseImageProcessor] | None = None


@dataclass(frozen=True)
class EncoderLibrary:
    """Another library's encoders: whether a name that is no folder is one of its architectures, and what a folder or
    name holds, None where that is not its own.
    """

    is_architecture: Callable[[str], bool]
    find: Callable[[str], EncoderSource | None]


LIBRARIES: list[EncoderLibrary] = []


def vision_config_of(path: str) -> PreTrainedConfig:
    """The encoder's configuration from a folder or name, which may hold a text encoder beside it."""
    return encoder_source(path).config


def load_vision_tower(path: str, dtype: torch.dtype | str | None = None, **more: Any) -> PreTrainedModel:
    """The pretrained encoder alone; a text encoder in the same folder is left where it is.

    more: goes to `from_pretrained`.
    """
    source = encoder_source(path)
    model = vision_family(source.config).model
    how = dict(config=source.config, dtype=dtype, output_loading_info=True, **more)
    with _quiet_report():
        if source.weights is None:
            tower, report = model.from_pretrained(path, **how)
        else:
            with torch.device("meta"):
                skeleton = model(source.config)
            state = source.weights(skeleton)
            tower, report = model.from_pretrained(None, state_dict=state, **how)
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ValueError(f"{path} lacks weights of the visual encoder: {missing}")
    return tower


def is_architecture(name: str) -> bool:
    """Whether a name without folder is an architecture of another library (for open_clip, ARCHITECTURE/TAG)."""
    return any(library.is_architecture(name) for library in LIBRARIES)


def encoder_source(path: str) -> EncoderSource:
    """Where an encoder is; `ValueError` where there is none, or none that is supported."""
    config = _transformers_config(path)
    if config is not None and config.model_type in FAMILIES:
        if isinstance(config, Dinov2Config | DINOv3ViTConfig):
            _settle_dino(config, path)
        return EncoderSource(config)
    for library in LIBRARIES:
        if found := library.find(path):
            return found
    if config is not None:
        raise unsupported(config.model_type)
    if Path(path).is_dir():
        raise ValueError(f"{path} holds no encoder (no config.json, no {OPEN_CLIP_CONFIG}): {_HINT}")
    raise ValueError(
        f"{path}: there is no such folder, and the hub has no encoder of this name, or was not reached: {_HINT}"
    )


def file_of(name: str, filename: str) -> str | None:
    """A file of a folder or hub repository, fetched where it must be; None where it has none of that name."""
    return cached_file(
        name,
        filename,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def _transformers_config(path: str) -> PreTrainedConfig | None:
    """The encoder's part of config.json, or None where there is no such file, or one of another library."""
    if path.startswith(PREFIXES) or is_architecture(path):
        return None
    found = file_of(path, "config.json")
    if found is None:
        return None
    fields = json.loads(Path(found).read_text(encoding="utf-8"))
    model_type = fields.get("model_type")
    if model_type is None:
        return None
    if model_type in OWN_VISION_CONFIGS:
        return OWN_VISION_CONFIGS[model_type].from_pretrained(path)
    if model_type not in CONFIG_MAPPING:
        raise unsupported(model_type)
    config = AutoConfig.from_pretrained(path)
    return getattr(config, "vision_config", config)


def side_of(processor: BaseImageProcessor) -> int | None:
    """The side of the square pictures that a processor makes; None where it does not say."""
    crops = getattr(processor, "do_center_crop", False)
    size = dict((processor.crop_size if crops else processor.size) or {})
    return size["height"] if size.keys() >= {"height", "width"} and size["height"] == size["width"] else None


def _settle_dino(config: Dinov2Config | DINOv3ViTConfig, path: str) -> None:
    """Note the size of the images that DINO gets: its configuration says that of pretraining. Nothing is at random."""
    if file_of(path, "preprocessor_config.json"):
        config.input_size = side_of(AutoImageProcessor.from_pretrained(path))
    if isinstance(config, Dinov2Config):
        config.intermediate_size = int(
            config.hidden_size * config.mlp_ratio
        )  # as others say it (`--vis_proj vit`)
    else:
        config.pos_embed_shift = config.pos_embed_jitter = config.pos_embed_rescale = None


@contextmanager
def _quiet_report() -> Iterator[None]:
    """Without transformers' table of unexpected weights: a text encoder's are expected to be left."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
