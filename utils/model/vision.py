"""Visual encoders behind one interface.

An encoder is a `PreTrainedModel` that maps pixels [N, 3, H, W] to an output whose `last_hidden_state` is
[N, S, D], the class token included where the encoder has one. A family of encoders is one row of `FAMILIES`,
found by the `model_type` of its configuration.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.utils import logging


@dataclass(frozen=True)
class VisionFamily:
    """How to make an encoder of one kind, and how many tokens it gives for an image."""

    model: type[PreTrainedModel]
    sequence_length: Callable[[PreTrainedConfig], int]


def _patches(config: PreTrainedConfig) -> int:
    return (config.image_size // config.patch_size) ** 2


FAMILIES = {
    "clip_vision_model": VisionFamily(CLIPVisionModel, lambda config: _patches(config) + 1),  # + class token
    "siglip_vision_model": VisionFamily(SiglipVisionModel, _patches),
}


def vision_family(config: PreTrainedConfig) -> VisionFamily:
    """The row of an encoder's configuration; `ValueError` where we have none."""
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"the visual encoder is a {config.model_type!r}; supported are {', '.join(FAMILIES)}"
            " (or a folder that holds one of them together with a text encoder)"
        )
    return FAMILIES[config.model_type]


def vision_config_of(path: str) -> PreTrainedConfig:
    """The encoder's configuration from a folder or hub name, which may hold a text encoder beside it."""
    config = AutoConfig.from_pretrained(path)
    config = getattr(config, "vision_config", config)
    vision_family(config)
    return config


def load_vision_tower(path: str, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """The pretrained encoder alone; a text encoder in the same folder is left where it is."""
    config = vision_config_of(path)
    with _quiet_report():
        tower, report = vision_family(config).model.from_pretrained(
            path, config=config, dtype=dtype, output_loading_info=True
        )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ValueError(f"{path} lacks weights of the visual encoder: {missing}")
    return tower


@contextmanager
def _quiet_report() -> Iterator[None]:
    """Without transformers' table of unexpected weights: a text encoder's are expected to be left."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def encode_images(tower: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Pixels [N, 3, H, W] -> last hidden states [N, S, D]; without a graph unless the encoder learns."""
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(learns):
        return tower(pixel_values.to(tower.dtype)).last_hidden_state
