"""Trainings of two ranks forked from one process that has everything imported."""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import psutil
import pytest

from tests.ranks import ON_CPUS, free_port


class Forked:
    """The ranks of one training."""

    def __init__(self, ranks: Sequence[multiprocessing.Process], log: Path) -> None:
        self.ranks, self.log = ranks, log
        self.pids = [each.pid for each in ranks]

    @property
    def printed(self) -> str:
        return self.log.read_text()

    def await_line(self, pattern: str, timeout: float = 300) -> None:
        """Wait until a printed line matches, or all have come to their end."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.printed) and any(each.exitcode is None for each in self.ranks):
            assert time.monotonic() < end, f"no {pattern} in {timeout} s:\n{self.printed[-4000:]}"
            time.sleep(0.05)

    def signal(self, number: int, ranks: Sequence[int], children: bool = False) -> None:
        """Send a signal to some ranks; with `children` to what they have started first, as launchers do."""
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(self.pids[rank])
                for each in [*(process.children(recursive=True) if children else []), process]:
                    each.send_signal(number)

    def wait(self, timeout: float = 300) -> list[int]:
        """The exit codes; ranks that still run are killed, and an error."""
        end = time.monotonic() + timeout
        for each in self.ranks:
            each.join(max(end - time.monotonic(), 0))
        codes = [each.exitcode for each in self.ranks]
        for each in self.ranks:
            if each.exitcode is None:
                os.killpg(each.pid, signal.SIGKILL)
                each.join()
        assert None not in codes, f"{codes} after {timeout} s:\n{self.printed[-4000:]}"
        return codes

    def left_behind(self, timeout: float = 15) -> list[str]:
        """What is still alive, after some time, of all that the ranks have started."""
        end = time.monotonic() + timeout
        while (alive := alive_in(self.pids)) and time.monotonic() < end:
            time.sleep(0.1)
        return alive


def alive_in(groups: Sequence[int]) -> list[str]:
    """The living processes of process groups."""
    alive = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(f"{process.pid} {' '.join(process.cmdline())}")
    return alive


class Forks:
    """The process from which trainings are forked."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.started = logs, 0
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.training.fault_tolerance.rank"])
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ON_CPUS.items():
                patch.setenv(name, value)
            ensure_running()

    def start(self, flags: Sequence[str], ranks: int = 2, disk: dict | None = None) -> Forked:
        """Begin a training; its ranks print into one log. disk: what befalls that of its `ranks` (`disks.py`)."""
        from tests.training.fault_tolerance.rank import train  # takes seconds

        self.started += 1
        log = self.logs / f"{self.started}.log"
        log.touch()
        rest = (ranks, free_port(), list(flags), str(log), disk)
        made = [self.context.Process(target=train, args=(number, *rest)) for number in range(ranks)]
        for each in made:
            each.start()
        return Forked(made, log)

    def run(
        self, flags: Sequence[str], ranks: int = 2, timeout: float = 600, disk: dict | None = None
    ) -> str:
        """A training from its beginning to its end; what it printed."""
        forked = self.start(flags, ranks, disk)
        assert forked.wait(timeout) == [0] * ranks, forked.printed[-4000:]
        return forked.printed


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Forks:
    return Forks(tmp_path_factory.mktemp("logs"))
