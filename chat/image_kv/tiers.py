"""Where keys and values of images are kept, within limits of bytes: on the model's devices, then in memory, and in a
folder, where they outlive the process."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from chat.image_kv.encoder import ImageKV
from chat.limits import StoreLimits
from utils.atomic import atomic_write
from utils.distributed import get_logger

logger = get_logger(__name__)

_CPU = torch.device("cpu")
_ENDING = ".safetensors"


class _Tier(OrderedDict[str, ImageKV]):
    """States of up to `limit` bytes, those least recently used first."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.nbytes = limit, 0

    def put(self, key: str, states: ImageKV) -> list[tuple[str, ImageKV]]:
        """Keep states; returns what has no place here: these, or others that have to leave for them."""
        if states.nbytes > self.limit:
            return [(key, states)]
        self.take(key)
        self[key] = states
        self.nbytes += states.nbytes
        leaving = []
        while self.nbytes > self.limit:
            oldest = next(iter(self))
            leaving.append((oldest, self.pop(oldest)))
            self.nbytes -= leaving[-1][1].nbytes
        return leaving

    def take(self, key: str) -> ImageKV | None:
        """Give states away."""
        if (states := self.pop(key, None)) is not None:
            self.nbytes -= states.nbytes
        return states


class ImageKVTiers:
    """The states least recently used leave each tier first: the device for memory, and memory for good.

    Not for several threads at once: `ImageStore` sees to that.
    """

    def __init__(self, limits: StoreLimits, devices: Sequence[torch.device]) -> None:
        self._devices = tuple(devices)  # of each layer
        on_device = any(device.type != "cpu" for device in devices)
        self.device, self.memory = _Tier(limits.device if on_device else 0), _Tier(limits.memory)

    def get(self, key: str) -> ImageKV | None:
        """The states kept under `key`, on the model's devices; they count as just used."""
        states = self.device.take(key) or self.memory.take(key)
        if states is not None:
            states = states.to(self._devices)
            self.put(key, states)
        return states

    def put(self, key: str, states: ImageKV) -> None:
        """Keep the states of an image."""
        for leaving, each in self.device.put(key, states):
            self.memory.put(leaving, each.to([_CPU] * len(each.keys)))


class ImageKVFiles:
    """A safetensors file for each image; the files least recently used go when there are too many bytes.

    Any number of threads and processes may share a folder: a file appears complete or not at all. A disk that
    is full or fails costs computations, never an answer.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit

    def read(self, key: str, devices: Sequence[torch.device]) -> ImageKV | None:
        """The states under `key`, on these devices, one for each layer; None where there is no whole file."""
        file = self._file(key)
        try:
            tensors = load_file(file)
            summary = tensors.pop("summary")
            layers = range(len(tensors) // 2)
            keys, values = (
                tuple(tensors[f"{kind}.{layer}"] for layer in layers) for kind in ("keys", "values")
            )
            os.utime(file)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError) as error:
            logger.warning("%s cannot be read (%s); its image is computed again", file, error)
            return None
        return ImageKV(keys, values, summary).to(devices)

    def write(self, key: str, states: ImageKV) -> None:
        """Keep the states of an image."""
        if states.nbytes > self._limit:
            return
        tensors = {"summary": states.summary.cpu()}
        tensors |= {f"keys.{layer}": keys.cpu() for layer, keys in enumerate(states.keys)}
        tensors |= {f"values.{layer}": values.cpu() for layer, values in enumerate(states.values)}
        try:
            atomic_write(self._file(key), save(tensors))
            self._make_room()
        except OSError as error:
            logger.warning("what was computed for an image is not kept on the disk: %s", error)

    def _make_room(self) -> None:
        found = []
        for file in self._folder.glob(f"*{_ENDING}"):
            try:
                status = file.stat()
            except FileNotFoundError:  # another process made room
                continue
            found.append((status.st_mtime, status.st_size, file))
        surplus = sum(size for _, size, _ in found) - self._limit
        for _, size, file in sorted(found):
            if surplus <= 0:
                return
            file.unlink(missing_ok=True)
            surplus -= size

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}{_ENDING}"
