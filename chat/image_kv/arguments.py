"""Command line flags of the image store: how much it may keep, and where."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from chat.limits import Limits
from utils.commands import GIB, writable_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.processing_utils import ProcessorMixin

    from chat.image_kv.store import ImageStore


class StoreSettings(TypedDict):
    """What a session and an evaluation take."""

    image_store: ImageStore | None
    keep_images: bool


def add_image_store_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the image KV cache: how much of it is kept, and where."""
    group = parser.add_argument_group(
        "image KV cache",
        "Keeps each image's keys and values, so that later questions need not compute them again. Attention mmca only;"
        " an image of 256 tokens takes 134 MB with a 7B decoder.",
    )
    default = Limits()
    group.add_argument(
        "--image_store_gpu_gb",
        type=_size,
        default=default.device / GIB,
        help="limit on the GPUs in GiB (default: %(default)g)",
    )
    group.add_argument(
        "--image_store_gb",
        type=_size,
        default=default.memory / GIB,
        help="limit in main memory in GiB (default: %(default)g)",
    )
    group.add_argument(
        "--image_store_folder", type=Path, help="folder that keeps them for later runs too (default: none)"
    )
    group.add_argument(
        "--image_store_folder_gb",
        type=_size,
        default=default.disk / GIB,
        help="limit in that folder in GiB (default: %(default)g)",
    )
    group.add_argument(
        "--no_image_store",
        action="store_true",
        help="keep nothing: compute images again where they return",
    )


def store_settings(
    parsed: argparse.Namespace, model: PreTrainedModel, processor: ProcessorMixin
) -> StoreSettings:
    """What the flags ask for, where the model allows it."""
    if parsed.no_image_store:
        return {"image_store": None, "keep_images": False}
    from chat.image_kv.store import store_if_possible

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
