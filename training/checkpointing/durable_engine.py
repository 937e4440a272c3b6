"""DeepSpeed's way of writing files, put off until DeepSpeed is done, with each file on the disk when it is written.

Import it late: importing DeepSpeed chooses the device.
"""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from utils.atomic import sync


class DurableCheckpointEngine(TorchCheckpointEngine):
    """Collects what DeepSpeed would write; `writes` are to be called afterwards, in their order.

    DeepSpeed's processes wait for each other while they save: an error of the disk in the middle of it, in one of them,
    would let the others hang.
    """

    def __init__(self, config_params: Any, keep: Callable[[Any], Callable[[], Any]]) -> None:
        """`keep` is given each state when DeepSpeed hands it over, and what it returns gives it when it is written."""
        super().__init__(config_params)
        self._keep = keep
        self.writes: list[Callable[[], None]] = []

    @contextmanager
    def of(self, engine: Any) -> Iterator[None]:
        """While DeepSpeed's `engine` saves: its files are collected here, and so are its scripts."""
        engine.checkpoint_engine = self
        copy_scripts = engine._copy_recovery_script
        engine._copy_recovery_script = lambda folder: self.writes.append(partial(copy_scripts, folder))
        try:
            yield
        finally:
            del engine._copy_recovery_script

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder later on, and its place in the folder above it lasting."""
        self.writes.append(partial(_make_folder, path, exist_ok))

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file later on, and bring it to the disk."""
        try:
            state = self._keep(state_dict)
        except (MemoryError, RuntimeError):
            state = _no_memory
        self.writes.append(partial(self._write, state, path))

    def _write(self, state: Callable[[], Any], path: str) -> None:
        refusals: list[OSError] = []
        try:
            with _File(path, refusals) as file:
                torch.save(state(), file, _use_new_zipfile_serialization=self.zipfile_serialization)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # what torch makes of the disk's errors, with another text
            if not refusals:
                raise
            raise refusals[0] from error


def _make_folder(path: str, exist_ok: bool) -> None:
    os.makedirs(path, exist_ok=exist_ok)
    sync(os.path.dirname(path))


def _no_memory() -> Any:
    reason = "main memory has no room for a copy of what is saved: --save_in_background false needs none"
    raise OSError(errno.ENOMEM, reason)


class _File(io.BufferedWriter):
    """A file that keeps the reason why it could not be written."""

    def __init__(self, path: str, refusals: list[OSError]) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self._refusals = refusals

    def write(self, data: Any) -> int:
        """As any file's."""
        try:
            return super().write(data)
        except OSError as error:
            self._refusals.append(error)
            raise
