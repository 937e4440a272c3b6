"""/dev/shm, the shared memory through which data loader workers hand over their batches.

Containers have little of it (docker: 64 MB). Where it is full, torch loses the batch in a thread of the worker, and the
loader waits for it for ever; so workers put their batches there themselves, where an error is seen.
"""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch

from utils.data.progress import in_units
from utils.data.spec import DataError

FOLDER = "/dev/shm"
_LEAST = 1 << 20  # bytes that workers need for their locks and for the smallest batches
_REMEDY = "give --dataloader_num_workers 0, or make it larger (docker run --shm-size 8g)"


class SharedMemoryError(DataError):
    """There is too little shared memory for workers; the message is one line and says what to do."""


def require_shared_memory(needed: int = _LEAST) -> None:
    """Raises `SharedMemoryError` where fewer bytes are free; does nothing on systems without such a folder."""
    if not os.path.isdir(FOLDER):
        return
    free = shutil.disk_usage(FOLDER).free
    if free < max(needed, _LEAST):
        raise SharedMemoryError(
            f"{FOLDER}, the shared memory through which workers hand over their batches, has {in_units(free)} free,"
            f" and {in_units(max(needed, _LEAST))} are needed: {_REMEDY}"
        )


@dataclass(frozen=True)
class SharedBatches:
    """A `collate_fn` that puts the batches of another one into shared memory, within workers.

    Raises `SharedMemoryError` where they do not fit.
    """

    collate: Callable[[Any], Any]

    def __call__(self, samples: Any) -> Any:
        batch = self.collate(samples)
        if torch.utils.data.get_worker_info() is not None:
            _share(batch)
        return batch


def _share(batch: Any) -> None:
    if isinstance(batch, torch.Tensor):
        try:
            batch.share_memory_()
        except RuntimeError as error:  # torch's text ends with the system's, and its number
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            raise SharedMemoryError(
                f"{FOLDER}, the shared memory through which workers hand over their batches, is full"
                f" ({in_units(shutil.disk_usage(FOLDER).total)}; a batch has"
                f" {in_units(batch.numel() * batch.element_size())}): {_REMEDY}, or take smaller batches"
            ) from error
    elif isinstance(batch, dict):
        for value in batch.values():
            _share(value)
    elif is_dataclass(batch):
        _share(vars(batch))
    elif isinstance(batch, list | tuple):
        for value in batch:
            _share(value)
