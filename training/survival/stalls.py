"""A watchdog: where nothing moves for too long, every process says where it stands, and the run ends."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOKS = 8  # in the time that a stall takes


class StallWatch:
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
