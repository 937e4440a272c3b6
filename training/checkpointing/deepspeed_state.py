"""DeepSpeed's part of a checkpoint: its files are written when DeepSpeed is done, each on the disk when it is written,
and the optimizer's state, split by ZeRO, is split anew for another number of processes.

Import it late: importing DeepSpeed chooses the device.
"""

import contextlib
import errno
import io
import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from training.checkpointing.folders import LATEST
from utils.atomic import begin_directory, staging_of, sync
from utils.distributed import decided_by_main, everyone, get_logger

logger = get_logger(__name__)

_UNIVERSAL = "latest_universal"  # DeepSpeed's name for the file that points to one


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


def load_resharded(engine: Any, folder: Path, output_dir: Path) -> None:
    """Load the DeepSpeed state in `folder`, written by any number of processes, into `engine`; all call.

    DeepSpeed's own converter puts the parts together into a universal checkpoint, parameter by parameter, and its
    engine takes from that what each process holds now. ZeRO stage and precision have to be those it was written with.
    The converted copy, 12 bytes a trained parameter, stands in `output_dir` until it is read.
    """
    logger.info("splitting the optimizer's state of %s anew for %d processes", folder, len(everyone(None)))
    place = output_dir / f"{folder.name}-universal"
    decided_by_main(lambda: _convert(folder, place))
    groups = engine.optimizer.param_groups
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    config = engine._config
    try:
        config.load_universal_checkpoint = True
        engine.load_checkpoint(str(staging_of(place)), load_module_strict=False)
    finally:
        config.load_universal_checkpoint = False
    # At ZeRO-3 DeepSpeed gives all groups the first one's settings, where ours differ in weight decay and rate,
    # and one and the same tensor as their count of steps, to which each group's step would add 1.
    for group, setting in zip(groups, settings, strict=True):
        group.update(setting)
    for state in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    everyone(None)  # all have read
    decided_by_main(lambda: shutil.rmtree(staging_of(place)))


def _convert(folder: Path, place: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal  # few trainings need it

    tag = (folder / LATEST).read_text().strip()
    staging = begin_directory(place)  # a leftover of a crash is cleared like that of a save
    arguments = Namespace(
        input_folder=str(folder / tag),
        output_folder=str(staging / tag),
        num_extract_workers=1,  # processes of its own would import everything again
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        ds_to_universal.main(arguments)
    (staging / _UNIVERSAL).write_text(tag)
