"""What asks a run to stop early: SIGTERM, SIGUSR1, Ctrl-C, or the end of the launcher that started it.

Signals only leave a note. The processes look at their notes together between two batches, and so stop at the
same step, whichever of them was asked. A second Ctrl-C ends a process at once, wherever it stands.
"""

import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import psutil

from training.exit_codes import INTERRUPTED, end_now
from utils.data.workers import SIGNALS
from utils.distributed import is_main_process

CTRL_C = "Ctrl-C"
"""The reason that a person at the terminal gives."""
_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "accelerate")
_LOOK_EVERY = 1.0  # seconds


class StopRequest:
    """Whether this process was asked to stop, and by what."""

    def __init__(self) -> None:
        """To be made early: launchers that end later are missed."""
        self.leave: Callable[[], object] = partial(end_now, INTERRUPTED)
        """Ends the process, at a second Ctrl-C; called in a thread of its own."""
        self._wake: socket.socket | None = None
        self._launchers = _launchers()
        self._reason: str | None = None
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
            signal.signal(number, self._note)
        # Handlers wait for the main thread, which may be held by another process or a device. Python writes the
        # numbers of signals here at once.
        heard, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._count_interrupts, args=[heard], name="Ctrl-C", daemon=True).start()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._reason = CTRL_C  # launchers send SIGTERM after it
        self._reason = self._reason or signal.Signals(number).name

    def _count_interrupts(self, heard: socket.socket) -> None:
        pressed = 0
        while numbers := heard.recv(64):
            for _ in range(numbers.count(signal.SIGINT)):
                pressed += 1
                if pressed > 1:
                    self.leave()
                elif is_main_process():
                    print(
                        "Ctrl-C: saving and stopping after this batch; press it again to stop at once without saving",
                        file=sys.stderr,
                        flush=True,
                    )


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
