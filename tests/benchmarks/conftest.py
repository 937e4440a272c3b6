"""Benchmarks as commands, called in this process."""

import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.attention import VARIABLE


@pytest.fixture
def printed(capsys, monkeypatch) -> Iterator[Callable[..., str]]:
    """Runs a benchmark once with these flags; what it printed. Threads and kernels are afterwards as before."""
    monkeypatch.setenv(VARIABLE, "auto")  # put back behind the test, which sets it
    threads = torch.get_num_threads()

    def run(benchmark, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", [benchmark.__file__, "--rounds", "1", *flags])
        benchmark.main()
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)
