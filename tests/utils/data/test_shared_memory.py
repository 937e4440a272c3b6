"""A machine with little shared memory: said in one line, where otherwise a loader waits for ever."""

import subprocess
import sys
from pathlib import Path

import pytest

from utils.data import workers
from utils.data.workers import SharedMemoryError, require_shared_memory, signal_safe

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["unshare", "-rm", "bash", "-c", 'mount -t tmpfs -o size=$0 tmpfs /dev/shm && exec "$@"']
PROGRAM = """
import sys
import torch
from torch.utils.data import DataLoader
from utils.data.workers import SharedMemoryError
from utils.data.workers import signal_safe

def collate(samples):
    return {"pixel_values": torch.zeros(int(sys.argv[1])), "origins": [("a", torch.ones(3))]}

try:
    batches = list(DataLoader(range(4), 2, **signal_safe(1, collate)))
    print(len(batches), batches[-1]["origins"][0][1].sum().item())
except SharedMemoryError as error:
    print(str(error).splitlines()[-1])
"""


def loaded(size: str, elements: int) -> str:
    """What the program prints on a machine with so much shared memory, whose batches have so many floats."""
    command = [*SMALL, size, sys.executable, "-c", PROGRAM, str(elements)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_named():
    said = loaded("2M", 1_000_000)
    assert "/dev/shm" in said and "is full" in said and "a batch has 4 MB" in said
    assert "--dataloader_num_workers 0" in said and "--shm-size" in said and said.count("\n") == 1
    assert loaded("2M", 100_000) == "2 3.0\n"


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64k", "260k"])
def test_too_little_for_any_worker_is_named_before(size):
    said = loaded(size, 1000)
    assert "/dev/shm" in said and "kB free, and 1.05 MB are needed: give --dataloader_num_workers 0" in said


def test_what_is_needed_is_compared_with_what_is_free(tmp_path, monkeypatch):
    require_shared_memory(1000)
    with pytest.raises(SharedMemoryError, match=r"and 1,000,000\.0 GB are needed"):
        require_shared_memory(10**15)
    monkeypatch.setattr(workers, "FOLDER", str(tmp_path / "not here"))  # not a Linux
    require_shared_memory(10**15)
    assert signal_safe(0, list)["num_workers"] == 0
