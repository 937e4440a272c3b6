"""Visual encoders behind one interface.

An encoder is a `PreTrainedModel` that maps pixels [N, 3, H, W] to an output whose `last_hidden_state` is
[N, S, D], the class token included where the encoder has one. A family of encoders is one row of `FAMILIES`,
found by the `model_type` of its configuration. Image size, preprocessing and the number of tokens are the
encoder's own.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from . import open_clip_files
from .configuration_vision import OWN_VISION_CONFIGS, OpenClipVisionConfig, QwenVisionConfig
from .open_clip_files import OpenClipFiles, file_of, find_open_clip
from .open_clip_vision import OpenClipVisionModel, describe
from .qwen_vit import QwenVisionModel

_HINT = "give a folder or hub name of a CLIP or SigLIP, one of open_clip, or what helper.extract_qwen_vl has written"


@dataclass(frozen=True)
class VisionFamily:
    """How to make an encoder of one kind; how many tokens it gives for an image, and of which width."""

    model: type[PreTrainedModel]
    sequence_length: Callable[[PreTrainedConfig], int]
    width: Callable[[PreTrainedConfig], int] = lambda config: config.hidden_size


def _patches(config: PreTrainedConfig) -> int:
    return (config.image_size // config.patch_size) ** 2


FAMILIES = {
    "clip_vision_model": VisionFamily(CLIPVisionModel, lambda config: _patches(config) + 1),  # + class token
    "siglip_vision_model": VisionFamily(SiglipVisionModel, _patches),
    OpenClipVisionConfig.model_type: VisionFamily(OpenClipVisionModel, lambda config: config.sequence_length),
    QwenVisionConfig.model_type: VisionFamily(
        QwenVisionModel, lambda config: config.query_grid**2, lambda config: config.output_size
    ),
}


def vision_family(config: PreTrainedConfig) -> VisionFamily:
    """The row of an encoder's configuration; `ValueError` where we have none."""
    if config.model_type not in FAMILIES:
        raise _unsupported(config)
    return FAMILIES[config.model_type]


def _unsupported(config: PreTrainedConfig) -> ValueError:
    return ValueError(
        f"the visual encoder is a {config.model_type!r}; supported are {', '.join(FAMILIES)}"
        " (or a folder that holds one of them together with a text encoder)"
    )


def vision_config_of(path: str) -> PreTrainedConfig:
    """The encoder's configuration from a folder or name, which may hold a text encoder beside it."""
    return _Source.of(path).config


def load_image_processor(path: str) -> BaseImageProcessor:
    """The preprocessing of an encoder's folder or name.

    Raises `ValueError` where it makes pictures of another size than the encoder takes.
    """
    source = _Source.of(path)
    if source.open_clip is not None:
        processor = open_clip_files.image_processor(source.open_clip)
    else:
        processor = AutoImageProcessor.from_pretrained(path)
    made, taken = _side(processor), source.config.image_size
    if made is not None and made != taken:
        raise ValueError(
            f"the image processor of {path} makes pictures of {made} pixels, but its encoder takes {taken}: correct"
            " size and crop_size in preprocessor_config.json"
        )
    return processor


def load_vision_tower(path: str, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """The pretrained encoder alone; a text encoder in the same folder is left where it is."""
    source = _Source.of(path)
    model = vision_family(source.config).model
    how = dict(config=source.config, dtype=dtype, output_loading_info=True)
    with _quiet_report():
        if source.open_clip is None:
            tower, report = model.from_pretrained(path, **how)
        else:
            with torch.device("meta"):
                skeleton = model(source.config)
            state = open_clip_files.read_weights(source.open_clip, skeleton)
            tower, report = model.from_pretrained(None, state_dict=state, **how)
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ValueError(f"{path} lacks weights of the visual encoder: {missing}")
    return tower


def encode_images(tower: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Pixels [N, 3, H, W] -> last hidden states [N, S, D]; without a graph unless the encoder learns."""
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(learns):
        return tower(pixel_values.to(tower.dtype)).last_hidden_state


@dataclass(frozen=True)
class _Source:
    """What a folder or name holds: an encoder in transformers' form, or in open_clip's."""

    config: PreTrainedConfig
    open_clip: OpenClipFiles | None = None

    @classmethod
    def of(cls, path: str) -> "_Source":
        config = _transformers_config(path)
        if config is not None and config.model_type in FAMILIES:
            return cls(config)
        files = find_open_clip(path)
        if files is not None:
            return cls(describe(files.model_cfg), files)
        if config is None and Path(path).is_dir():
            raise ValueError(
                f"{path} holds no encoder (no config.json, no {open_clip_files.CONFIG}): {_HINT}"
            )
        if config is None:
            raise ValueError(
                f"{path}: there is no such folder, and the hub has no encoder of this name, or was not reached:"
                f" {_HINT}"
            )
        raise _unsupported(config)


def _transformers_config(path: str) -> PreTrainedConfig | None:
    """The encoder's part of config.json, or None where there is no such file, or one of another library."""
    if path.startswith(open_clip_files.PREFIXES) or open_clip_files.is_architecture(path):
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
    config = AutoConfig.from_pretrained(path)
    return getattr(config, "vision_config", config)


def _side(processor: BaseImageProcessor) -> int | None:
    """The side of the square pictures that a processor makes; None where it does not say."""
    crops = getattr(processor, "do_center_crop", False)
    size = dict((processor.crop_size if crops else processor.size) or {})
    return size["height"] if size.keys() >= {"height", "width"} and size["height"] == size["width"] else None


@contextmanager
def _quiet_report() -> Iterator[None]:
    """Without transformers' table of unexpected weights: a text encoder's are expected to be left."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
