"""A watchdog: where nothing moves for too long, every process says where it stands, and the run ends."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.atomic import atomic_write

STALLED_AT = "stalled.json"
"""In the output folder: the step at which the run has stalled last."""

_LOOKS = 8  # in the time that a stall takes


def last_stall(output_dir: str | Path) -> int | None:
    """The step at which an earlier start of the run has stalled, counted from 1; None where none has."""
    try:
        return int(json.loads(Path(output_dir, STALLED_AT).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record_stall(output_dir: str | Path, step: int) -> None:
    """Keep the step for the next start. Does not wait for the disk, which may be what stalls."""

    def write() -> None:
        with suppress(OSError):
            atomic_write(Path(output_dir, STALLED_AT), json.dumps({"step": step}))

    threading.Thread(target=write, name="stalled", daemon=True).start()


class Watchdog:
    """Calls `on_stall` with the last place that was marked, once, when no other was for `timeout` seconds."""

    def __init__(self, timeout: float, on_stall: Callable[[str], None]) -> None:
        """`timeout` 0 never calls. `on_stall` runs in a thread of its own."""
        self.timeout, self.on_stall = timeout, on_stall
        self._place = "before the first step"
        self._since: float | None = None
        self._end, self._stalled = threading.Event(), False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._since = time.monotonic()
        if self.timeout > 0 and self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="stalls", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._end.set()

    def mark(self, place: str) -> None:
        """Something moved: the process is at `place` now, in words that follow "is".

        After a stall was called it waits here for its end: had it gone on, another process could finish alone.
        """
        if self._stalled:
            self._end.wait()
        self._place, self._since = place, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the block take its time: how long a disk takes says nothing about the processes."""
        self._since = None
        try:
            yield
        finally:
            self._since = time.monotonic()

    def _watch(self) -> None:
        while not self._end.wait(self.timeout / _LOOKS):
            since = self._since
            if since is not None and time.monotonic() - since > self.timeout:
                self._stalled = True
                self.on_stall(self._place)
                return
