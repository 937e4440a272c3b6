"""The ways in which a run ends, their exit codes, and how a process ends at once."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

from training.checkpointing.folders import ManifestError, resumable_checkpoints

FINISHED = 0
MISTAKE = 2
"""A person is needed: a wrong flag, bad data, a loss that is no number; the last line says what to do."""
STOPPED = 75
"""A signal asked for it, and the checkpoint is on the disk: start again with --resume_from_checkpoint."""
RANK_LOST = 76
"""Another process of the run is gone; the message names it and the last complete checkpoint."""
STALLED = 77
"""Nothing moved for --stall_timeout seconds; the message says where each process stood.

`MISTAKE` where it is the second time at the same step.
"""
INTERRUPTED = 130
"""Ctrl-C: the checkpoint is on the disk as after a signal, unless it was pressed before the first step, or twice."""


class AgreedError(RuntimeError):
    """A mistake that all processes come to together, so that one of them says it, in one line."""


class TrainingDivergedError(AgreedError):
    """The loss is not a number any more; the message is one line and says what to do."""


class StoppedBySignal(Exception):  # noqa: N818 - nothing went wrong
    """Training ended because a signal asked for it; the message says where it can go on.

    code: the exit code, `STOPPED`, or `INTERRUPTED` where a person pressed Ctrl-C.
    """

    def __init__(self, message: str, code: int = STOPPED) -> None:
        super().__init__(message)
        self.code = code


def last_checkpoint(output_dir: str | Path) -> str:
    """Where a run can go on from, in words."""
    found = None
    while found is None:
        try:
            found = resumable_checkpoints(output_dir)
        except ManifestError:  # another process has just removed an old one
            time.sleep(0.1)
    if not found:
        return f"no checkpoint is complete in {output_dir}, so a new run starts afresh"
    return f"the last complete checkpoint is {found[-1]}: resume from it with --resume_from_checkpoint"


def end_now(code: int, message: str = "") -> None:
    """End this process from any thread, with all that it has started: the main thread may wait for ever."""
    if message:
        print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)
