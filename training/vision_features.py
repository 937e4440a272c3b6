"""`--cache_vision_features`: what the frozen encoder makes of each picture, computed once, before training.

The encoder always gives the same for a picture, and training reads each picture in every epoch. So its last
hidden states are computed beforehand, each distinct picture once over all processes, and are kept exactly, in
the encoder's own type. Training then reads them in place of pixels: it neither decodes a picture nor enters the
encoder, on any process. They are known by the picture's bytes and by the encoder, its preprocessing included,
and serve any later run with the same.
"""

import hashlib
import json
import math
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel, ProcessorMixin

from utils.commands import UsageError
from utils.conversation import ConversationError, ImageError
from utils.data import Mixture
from utils.data.batching.vision_feature_cache import FeatureStore, FeatureWriter, image_key
from utils.data.readers.conversion_cache import cache_folder, in_units
from utils.data.workers import parallel_map, signal_safe
from utils.distributed import barrier, decided_by_main, everyone, get_logger, rank, world_size
from utils.model.loading import gathered
from utils.model.quantised import quantised_layers, whole_weight
from utils.model.vision import encode_images, vision_family
from utils.plugins import code_of

logger = get_logger(__name__)

_BATCH = 32  # pictures, tiles among them, that go through the encoder together
_FORM = 2  # of what is stored, and of the preprocessing's own code


def store_features(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    parts: Sequence[Mixture],
    device: torch.device,
    workers: int = 0,
) -> FeatureStore:
    """The features of all pictures in `parts`, those computed that are not stored yet; all processes call.

    Pictures that cannot be read are left to training, which names them. Raises `UsageError` where the encoder learns,
    or where the disk has no room for what is missing.
    """
    tower = model.model.vision_tower
    if any(parameter.requires_grad for parameter in tower.parameters()):
        raise UsageError(
            "--cache_vision_features needs an encoder that stays as it is: leave out --vis_lora_dim, or lora in"
            " --train"
        )
    with gathered(*tower.parameters()):
        folder = cache_folder() / "vision_features" / _fingerprint(tower, processor)
        folder.mkdir(parents=True, exist_ok=True)
        store = FeatureStore(folder)
        missing = [each for picture in _pictures(parts, processor) if (each := picture.missing(store)).keys]
        count = sum(len(each.keys) for each in missing)
        _foretell(model.config.vision_config, tower.dtype, folder, len(store), count)
        sharers = _sharers(folder)
        mine = [each for each in missing if sharers[each.keys[0][0] % len(sharers)] == rank()]
        _compute(tower, processor, parts, mine, folder, device, workers)
    barrier()
    return FeatureStore(folder)


@dataclass(frozen=True)
class _Picture:
    """Where a picture is: the part, its record there, and its number among the record's pictures; which of its `views`
    are meant (0: the whole; from 1: its tiles), and their keys."""

    part: int
    record: int
    number: int
    views: tuple[int, ...]
    keys: tuple[bytes, ...]

    def missing(self, store: FeatureStore) -> "_Picture":
        """The same with those views alone that are not in the store."""
        pairs = [(view, key) for view, key in zip(self.views, self.keys, strict=True) if key not in store]
        return replace(self, views=tuple(view for view, _ in pairs), keys=tuple(key for _, key in pairs))


class _Keys(Dataset):
    """The keys of each record's pictures, of all their views; none for one that cannot be read."""

    def __init__(self, part: Mixture, processor: ProcessorMixin) -> None:
        self.part, self.processor = part, processor

    def __len__(self) -> int:
        return self.part.num_sources

    def __getitem__(self, record: int) -> list[list[bytes]]:
        try:
            return [self._keys(image) for image in self.part.source(record).images]
        except ConversationError:
            return []

    def _keys(self, image: Any) -> list[bytes]:
        try:
            return [image_key(view) for view in self.processor.views([image])]
        except ImageError:
            return []


class _Pixels(Dataset):
    """Views of each picture as the encoder takes them, with their keys; none of one that cannot be decoded."""

    def __init__(
        self, parts: Sequence[Mixture], pictures: Sequence[_Picture], processor: ProcessorMixin
    ) -> None:
        self.parts, self.pictures, self.processor = parts, pictures, processor

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> list[tuple[bytes, torch.Tensor]]:
        picture = self.pictures[index]
        image = self.parts[picture.part].source(picture.record).images[picture.number]
        try:
            views = self.processor.views([image])
            pixels = self.processor.pixel_values([views[view] for view in picture.views])
        except ImageError:
            return []
        return list(zip(picture.keys, pixels, strict=True))


def _pictures(parts: Sequence[Mixture], processor: ProcessorMixin) -> list[_Picture]:
    """All distinct pictures, the same list in all processes, each of which reads its share of the records."""
    found: dict[bytes, _Picture] = {}
    for number, part in enumerate(parts):
        records = range(rank(), part.num_sources, world_size())
        keys: Iterator[list[list[bytes]]] = parallel_map(
            Subset(_Keys(part, processor), records), "looking for pictures"
        )
        for record, of_record in zip(records, keys, strict=True):
            for place, of_views in enumerate(of_record):
                if of_views:
                    views = tuple(range(len(of_views)))
                    picture = _Picture(number, record, place, views, tuple(of_views))
                    found.setdefault(of_views[0], picture)
    together: dict[bytes, _Picture] = {}
    for pictures in everyone(list(found.values())):
        for picture in pictures:
            together.setdefault(picture.keys[0], picture)
    return list(together.values())


def _sharers(folder: Path) -> list[int]:
    """The processes that see this folder's files: all, or those of this machine where each has its own disk."""
    mark = decided_by_main(lambda: _marked(folder))
    disk = "the main process's" if (folder / mark).exists() else socket.gethostname()
    disks = everyone(disk)
    (folder / mark).unlink(missing_ok=True)
    return [process for process, each in enumerate(disks) if each == disk]


def _marked(folder: Path) -> str:
    name = f".{uuid.uuid4().hex}"
    (folder / name).touch()
    return name


def _foretell(config: Any, dtype: torch.dtype, folder: Path, stored: int, missing: int) -> None:
    """Say how much room the features take before any is computed; refuse in all processes where one has too
    little.
    """
    family = vision_family(config)
    each = family.sequence_length(config) * family.width(config) * dtype.itemsize
    free = shutil.disk_usage(folder).free
    logger.info(
        "vision features: %s pictures of %s are stored in %s; %s more take %s, of %s that are free",
        *(f"{stored:,}", in_units(each), folder, f"{missing:,}", in_units(missing * each), in_units(free)),
    )
    refusal = (
        f"--cache_vision_features would take {in_units(missing * each)} in {folder}, where {in_units(free)} are"
        " free: name a larger disk by --data_cache_path, or leave the flag out"
    )
    for refused in everyone(refusal if missing * each > free else None):
        if refused:
            raise UsageError(refused)


def _compute(
    tower: PreTrainedModel,
    processor: ProcessorMixin,
    parts: Sequence[Mixture],
    mine: Sequence[_Picture],
    folder: Path,
    device: torch.device,
    workers: int,
) -> None:
    if not mine:
        return
    tower.to(device).eval()
    writer = FeatureWriter(folder)
    at_once = max(1, _BATCH // max(len(picture.keys) for picture in mine))
    batches, start = math.ceil(len(mine) / at_once), time.perf_counter()
    read = _batches(_Pixels(parts, mine, processor), at_once, workers)
    for number, (keys, pixels) in enumerate(read, start=1):
        writer.add(keys, encode_images(tower, pixels.to(device)))
        if number * 10 // batches > (number - 1) * 10 // batches:  # each tenth
            seconds = time.perf_counter() - start
            logger.info("vision features: %.0f %% computed in %.0f s", 100 * number / batches, seconds)
    writer.close()


def _batches(pictures: _Pixels, at_once: int, workers: int) -> Iterator[tuple[list[bytes], torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)  # the global one stays in step with other processes
    for batch in DataLoader(pictures, at_once, generator=generator, **signal_safe(workers, list)):
        if read := [pair for of_picture in batch for pair in of_picture]:
            keys, pixels = zip(*read, strict=True)
            yield list(keys), torch.stack(pixels)


def _fingerprint(tower: PreTrainedModel, processor: ProcessorMixin) -> str:
    """The same for the same weights, whole, their bits, type, code and preprocessing."""
    known = hashlib.blake2b(digest_size=16)
    parts = [tower.config.to_dict(), processor.image_processor.to_dict()]
    settings = [_FORM, *parts, str(tower.dtype), code_of(type(tower))]
    known.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        known.update(name.encode())
        known.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    for name, layer in quantised_layers(tower).items():  # the same whole weights give others in fewer bits
        known.update(f"{name} {type(layer).__name__}".encode())
        known.update(whole_weight(layer).cpu().float().numpy())
    return known.hexdigest()
