"""Trainings of two ranks forked from one process that has everything imported."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.ranks import ON_CPUS, ROOT


class Forked:
    """The ranks of one training."""

    def __init__(self, forks: "Forks", pids: Sequence[int], log: Path) -> None:
        self.forks, self.pids, self.log = forks, list(pids), log

    @property
    def printed(self) -> str:
        return self.log.read_text()

    def await_line(self, pattern: str, timeout: float = 300) -> str:
        """Wait until a printed line matches, and return it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if found := re.search(pattern, self.printed):
                return found[0]
            if not any(_runs(pid) for pid in self.pids):
                break  # it came to its end before
            time.sleep(0.05)
        else:
            raise AssertionError(f"no {pattern} in {timeout} s:\n{self.printed[-4000:]}")
        return ""

    def signal(self, number: int, ranks: Sequence[int], children: bool = False) -> None:
        """Send a signal to some ranks; with `children` to what they have started first, as launchers do."""
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(self.pids[rank])
                for each in [*(process.children(recursive=True) if children else []), process]:
                    each.send_signal(number)

    def wait(self, timeout: float = 300) -> list[int]:
        """The exit codes; ranks that still run are killed, and an error."""
        codes = self.forks.ask({"wait": self.pids, "timeout": timeout})["codes"]
        if None in codes:
            for pid, code in zip(self.pids, codes, strict=True):
                if code is None:
                    os.killpg(pid, signal.SIGKILL)
            self.forks.ask(
                {"wait": [p for p, c in zip(self.pids, codes, strict=True) if c is None], "timeout": 9}
            )
            raise AssertionError(f"{codes} after {timeout} s:\n{self.printed[-4000:]}")
        return codes

    def left_behind(self, timeout: float = 15) -> list[str]:
        """What is still alive, after some time, of all that the ranks have started."""
        end = time.monotonic() + timeout
        while alive := alive_in(self.pids):
            if time.monotonic() > end:
                break
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


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Forks:
    """The process from which trainings are forked."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.started = logs, 0
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forking.py")],
            cwd=ROOT,
            env={**os.environ, **ON_CPUS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def ask(self, order: dict) -> dict:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def start(self, flags: Sequence[str], ranks: int = 2, disk: dict | None = None) -> Forked:
        """Begin a training; its ranks print into one log. disk: what befalls that of `ranks` (`forking.Disk`)."""
        self.started += 1
        log = self.logs / f"{self.started}.log"
        log.touch()
        order = {"start": list(flags), "ranks": ranks, "log": str(log), "disk": disk}
        pids = self.ask(order)["pids"]
        return Forked(self, pids, log)

    def run(
        self, flags: Sequence[str], ranks: int = 2, timeout: float = 600, disk: dict | None = None
    ) -> str:
        """A training from its beginning to its end; what it printed."""
        forked = self.start(flags, ranks, disk)
        assert forked.wait(timeout) == [0] * ranks, forked.printed[-4000:]
        return forked.printed

    def _answer(self) -> dict:
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise AssertionError("the forking process has ended")


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("logs"))
    yield made
    made.process.stdin.close()
    made.process.wait(timeout=300)
