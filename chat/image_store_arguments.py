"""Command line flags of the image store: how much it may keep, and where."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from chat.limits import GIB, Limits
from utils.commands import writable_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.processing_utils import ProcessorMixin

    from chat.image_store import ImageStore


class StoreSettings(TypedDict):
    """What a session and an evaluation take."""

    image_store: ImageStore | None
    keep_images: bool


def add_image_store_arguments(parser: argparse.ArgumentParser) -> None:
    """What the model computes for a picture is kept, so that no later question about it computes it again."""
    group = parser.add_argument_group(
        "what is computed for pictures is kept",
        "for models with attention mmca; a picture of 256 tokens takes 134 MB with a 7B decoder",
    )
    default = Limits()
    group.add_argument(
        "--image_store_gpu_gb", type=_size, default=default.device / GIB, help="on the GPUs (%(default)g)"
    )
    group.add_argument(
        "--image_store_gb", type=_size, default=default.memory / GIB, help="in memory (%(default)g)"
    )
    group.add_argument(
        "--image_store_folder", type=Path, help="a folder that keeps them for later runs too (default: none)"
    )
    group.add_argument(
        "--image_store_folder_gb", type=_size, default=default.disk / GIB, help="in that folder (%(default)g)"
    )
    group.add_argument("--no_image_store", action="store_true", help="keep nothing, compute all again")


def store_settings(
    parsed: argparse.Namespace, model: PreTrainedModel, processor: ProcessorMixin
) -> StoreSettings:
    """What the flags ask for, where the model allows it."""
    if parsed.no_image_store:
        return {"image_store": None, "keep_images": False}
    from chat.image_store import store_if_possible

    if parsed.image_store_folder:
        writable_folder(parsed.image_store_folder, "--image_store_folder")
    limits = Limits(
        device=int(parsed.image_store_gpu_gb * GIB),
        memory=int(parsed.image_store_gb * GIB),
        folder=parsed.image_store_folder,
        disk=int(parsed.image_store_folder_gb * GIB),
    )
    store = store_if_possible(model, processor, parsed.max_seq_len, limits)
    return {"image_store": store, "keep_images": store is not None}


def _size(text: str) -> float:
    size = float(text)
    if size < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return size
