"""Every item once and in order, whatever the number of processes, and nobody else's random numbers."""

import re

import pytest
import torch
from torch.utils.data import Dataset

from utils import commands
from utils.data import workers as workers_module
from utils.data.workers import parallel_map


class Squares(Dataset):
    def __init__(self, size: int, wrong: int = -1) -> None:
        self.size, self.wrong = size, wrong

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if index == self.wrong:
            raise LookupError(f"item {index}")
        return index * index


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("size", [0, 1, 700])
def test_items_come_in_order(size: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_WORTH_WORKERS", 1 if workers else 10**9)
    monkeypatch.setattr(workers_module, "cores", lambda: workers)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert list(parallel_map(Squares(size), "squares")) == [number * number for number in range(size)]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_worker_raises_is_raised(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_WORTH_WORKERS", 1 if workers else 10**9)
    monkeypatch.setattr(workers_module, "cores", lambda: workers)
    with pytest.raises(LookupError, match="item 300"):
        list(parallel_map(Squares(400, wrong=300), "squares"))


def test_a_log_file_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(commands, "LINE_EVERY", 0)
    list(parallel_map(Squares(400), "squares"))
    lines = [re.sub(r"in \d+ s", "in 0 s", line) for line in caplog.messages]
    assert lines == ["squares: 256 of 400 in 0 s", "squares: 400 of 400 in 0 s"]
