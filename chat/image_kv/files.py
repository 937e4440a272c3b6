"""Keys and values of images in a folder: they outlive the process, within a limit of bytes."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from utils.atomic import atomic_write
from utils.distributed import get_logger
from utils.model.image_states import ImageStates

logger = get_logger(__name__)

_ENDING = ".safetensors"


class StateFiles:
    """A safetensors file for each image; the files least recently used go when there are too many bytes.

    Any number of threads and processes may share a folder: a file appears complete or not at all. A disk that
    is full or fails costs computations, never an answer.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit

    def read(self, key: str, devices: Sequence[torch.device]) -> ImageStates | None:
        """The states under `key`, on these devices, one for each layer; None where there is no whole file."""
        file = self._file(key)
        try:
            tensors = load_file(file)
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
        return ImageStates(keys, values).to(devices)

    def write(self, key: str, states: ImageStates) -> None:
        """Keep the states of an image."""
        if states.nbytes > self._limit:
            return
        tensors = {f"keys.{layer}": keys.cpu() for layer, keys in enumerate(states.keys)}
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
