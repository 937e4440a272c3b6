"""DeepSpeed's way of writing files, with each on the disk when it is done, and no error in the middle of a save.

Import it late: importing DeepSpeed chooses the device.
"""

import io
import os
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from utils.atomic import sync


class DurableCheckpointEngine(TorchCheckpointEngine):
    """Remembers the first error instead of raising it.

    DeepSpeed's processes wait for each other while they save: one that left early would let the others hang.
    `failure` is to be asked for afterwards, by all of them.
    """

    def __init__(self, config_params: Any) -> None:
        super().__init__(config_params)
        self.failure: Exception | None = None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder, and its place in the folder above it lasting."""
        try:
            os.makedirs(path, exist_ok=exist_ok)
            sync(os.path.dirname(path))
        except OSError as error:
            self.failure = self.failure or error

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file and bring it to the disk."""
        refusals: list[OSError] = []
        try:
            with _File(path, refusals) as file:
                torch.save(state_dict, file, _use_new_zipfile_serialization=self.zipfile_serialization)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch makes the latter of the former, with another text
            self.failure = self.failure or next(iter(refusals), error)


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
