"""What a training needs beside memory on GPUs: downloads, disk space, and how many steps it takes.

Nothing is fetched. Weights that are not here count by their configuration, parameters x bytes of their type
(`training.memory.named_models`); those that are here by their files.
"""

import argparse
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from training.arguments.command_line import model_and_data
from training.datasets import longest_conversation, make_rows, read_parts
from training.memory.named_models import decoder_config, decoder_size, encoder_size
from training.memory.states import Weights
from utils.data import BadRecords, PackedDataset
from utils.hub import local_weights
from utils.model import build_processor
from utils.model.pretrained_encoders import HUB, LOCAL_FOLDER

_OPTIMIZER = 12
"""Bytes a learned element in DeepSpeed's state: the master weight and Adam's two moments, in single precision."""


@dataclass(frozen=True)
class Model:
    """A pretrained model that a training reads: its bytes, and whether they are on this machine."""

    name: str
    size: int
    is_here: bool

    @property
    def is_lacking(self) -> bool:
        """Whether it is a folder that should hold the weights, and does not."""
        return not self.is_here and Path(self.name).is_dir()

    @property
    def to_download(self) -> int:
        """Bytes still to be fetched from the hub."""
        return 0 if self.is_here or self.is_lacking else self.size


@dataclass(frozen=True)
class Disk:
    """Bytes that will be written to a disk, for what, and how many are free there."""

    folder: Path
    purposes: tuple[str, ...]
    needed: int
    free: int


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of a training; `at_most` where packing will make them fewer, None where they are not known."""

    count: int | None
    of: str
    at_most: bool = False


def models_of(flags: argparse.Namespace) -> tuple[Model, ...]:
    """Decoder and encoder."""
    models = []
    for name, published in (
        (flags.lm_model_name_or_path, decoder_size),
        (flags.vision_model_name_or_path, encoder_size),
    ):
        plain = name.removeprefix(LOCAL_FOLDER).removeprefix(HUB)
        here = local_weights(plain)
        models.append(Model(plain, published(name) if here is None else here, here is not None))
    return tuple(models)


def checkpoints_of(
    flags: argparse.Namespace, weights: Weights, dtype: torch.dtype, steps: Steps
) -> dict[str, tuple[int, int]]:
    """How many folders of each kind the output folder holds at most, and the bytes of one; tokenizers not counted.

    While a folder is written, the one that it replaces is still there.
    """
    forms = {"full": weights.total * dtype.itemsize, "trained": weights.learned * dtype.itemsize}
    if any(flags.frozen_bits):
        forms["full"] = forms["trained"]  # the only form that there is
    state = 0 if flags.save_only_model else weights.learned * (_OPTIMIZER + dtype.itemsize)
    held = {"final": (1, forms[flags.checkpoint_form])}
    if flags.eval_strategy != "no":
        held["best"] = (2, forms[flags.checkpoint_form])
    if flags.save_strategy != "no":
        saves = math.ceil(flags.num_train_epochs)
        if flags.save_strategy == "steps" and steps.count is not None:
            saves = (
                int(steps.count // flags.save_steps) if flags.save_steps >= 1 else int(1 / flags.save_steps)
            )
        kept = min(saves, flags.save_total_limit + 1) if flags.save_total_limit else saves
        held["checkpoint-N"] = (kept, forms[flags.epoch_checkpoint_form] + state)
    return held


def disks_of(output: Path, checkpoints: int, downloads: int) -> tuple[Disk, ...]:
    """The disks that downloads and checkpoints go to, one where both go to the same."""
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted = [(Path(HF_HUB_CACHE), "downloads", downloads)] if downloads else []
    wanted.append((output.absolute(), "checkpoints", checkpoints))
    disks: dict[int, Disk] = {}
    for folder, purpose, needed in wanted:
        place = next(each for each in (folder, *folder.parents) if each.is_dir())
        device = os.stat(place).st_dev
        before = disks.get(device, Disk(folder, (), 0, shutil.disk_usage(place).free))
        disks[device] = Disk(folder, (*before.purposes, purpose), before.needed + needed, before.free)
    return tuple(disks.values())


def steps_of(flags: argparse.Namespace, gpus: int, models: Sequence[Model], has_data: bool) -> Steps:
    """Optimizer steps of the whole training, from the data themselves.

    Rows of packed conversations are counted with the decoder's tokenizer, so its model has to be here.
    """
    batch = flags.per_device_train_batch_size * gpus * flags.gradient_accumulation_steps
    if flags.max_steps > 0:
        return Steps(flags.max_steps, "as --max_steps says")
    if not has_data:
        return Steps(None, "known when the data are there")
    model_arguments, data = model_and_data(flags)
    part, _ = read_parts(data, flags.seed, BadRecords(max_fraction=1))
    rows, kind, at_most = len(part), "conversations", False
    if data.packing and all(model.is_here for model in models):
        processor = build_processor(
            model_arguments.lm_model_name_or_path,
            model_arguments.vision_model_name_or_path,
            model_arguments.projector,
            model_arguments.summary,
            data.tiles,
        )
        longest = longest_conversation(data, decoder_config(flags.lm_model_name_or_path))
        packed = make_rows(part, processor, data, flags.seed, longest=longest)
        assert isinstance(packed, PackedDataset)
        packed.reserve(math.ceil(flags.num_train_epochs))
        rows, kind = len(packed), f"rows of {flags.max_seq_len:,} tokens"
    elif data.packing:
        kind, at_most = "conversations; packed, when the tokenizer is here, they are fewer rows", True
    batches = -(-rows // (flags.per_device_train_batch_size * gpus))
    of_an_epoch = -(-batches // flags.gradient_accumulation_steps)
    count = math.ceil(flags.num_train_epochs * of_an_epoch)
    return Steps(count, f"{flags.num_train_epochs:g} epochs of {rows:,} {kind}, {batch} a step", at_most)


def lines(models: Sequence[Model], disks: Sequence[Disk], steps: Steps) -> Iterator[str]:
    """All of it in words, a line each."""
    for model in models:
        if model.is_here:
            yield f"model {model.name}: {gigabytes(model.size)}, here"
        elif model.is_lacking:
            yield f"model {model.name}: this folder holds no weights"
        else:
            yield f"model {model.name}: {gigabytes(model.size)} to download (parameters x bytes, by its configuration)"
    for disk in disks:
        purposes = " and ".join(disk.purposes)
        yield f"disk of {disk.folder}: {gigabytes(disk.needed)} for {purposes}, {gigabytes(disk.free)} are free"
    if steps.count is None:
        yield f"steps: {steps.of}"
    else:
        yield f"steps: {'at most ' if steps.at_most else ''}{steps.count:,}: {steps.of}"


def short_of(disks: Sequence[Disk]) -> Iterator[str]:
    """What is short on each disk that is too small."""
    for disk in disks:
        if disk.needed > disk.free:
            yield f"{gigabytes(disk.needed)} on the disk of {disk.folder}, where {gigabytes(disk.free)} are free"


def gigabytes(size: int) -> str:
    """Bytes in GB of 10^9."""
    return f"{size / 1e9:,.1f} GB"
