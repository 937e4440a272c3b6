"""What asks a run to stop early: SIGTERM, SIGUSR1, or the end of the launcher that started it.

Signals only leave a note. The processes look at their notes together between two batches, and so stop at the
same step, whichever of them was asked.
"""

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from utils.data.shielded_workers import SIGNALS

_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "accelerate")
_LOOK_EVERY = 1.0  # seconds


class StopRequest:
    """Whether this process was asked to stop, and by what."""

    def __init__(self) -> None:
        """To be made early: launchers that end later are missed."""
        self._launchers = _launchers()
        self._reason: str | None = None
        self._handlers: dict[int, Any] = {}
        self._looked = time.monotonic()

    @property
    def reason(self) -> str | None:
        """What asked for it; None where nothing has."""
        if self._reason is None and time.monotonic() - self._looked > _LOOK_EVERY:
            self._looked = time.monotonic()
            if any(not _runs(launcher) for launcher in self._launchers):
                self._reason = "the end of its launcher"
        return self._reason

    def listen(self) -> None:
        """Take the signals up from now on; for the main thread."""
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._note)

    def ignore(self) -> None:
        """Give the signals back to what had them before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._reason = self._reason or signal.Signals(number).name


def _launchers() -> list[psutil.Process]:
    """The launchers among the processes above this one, without a gap."""
    found = []
    for process in psutil.Process().parents():
        try:
            words = process.cmdline()[:4]
        except psutil.Error:
            break
        if not words or "python" not in Path(words[0]).name:
            break
        if any(name in word for word in words[1:] for name in _LAUNCHERS):
            found.append(process)
    return found


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
