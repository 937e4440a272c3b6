import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).parents[3]


def engine():
    from training.checkpointing.durable_engine import (
        DurableCheckpointEngine,  # imports DeepSpeed, which takes seconds
    )

    return DurableCheckpointEngine(SimpleNamespace(checkpoint_config={"checkpoint_serialization": True}))


IN_A_SMALL_PLACE = """
import json, resource, sys
import torch
from tests.training.checkpointing.test_durable_engine import engine

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for size in json.loads(sys.argv[2]):
    writer = engine()
    writer.save({"weight": torch.zeros(size)}, f"{sys.argv[1]}/{size}.pt")
    print("remembered", getattr(writer.failure, "errno", None), flush=True)
"""


def test_what_is_written_reads_back(tmp_path):
    writer = engine()
    writer.makedirs(str(tmp_path / "folder"))
    writer.save({"weight": torch.arange(5)}, str(tmp_path / "folder" / "state.pt"))
    assert writer.failure is None
    assert torch.load(tmp_path / "folder" / "state.pt")["weight"].tolist() == [0, 1, 2, 3, 4]


def test_the_disk_s_own_reason_is_remembered(tmp_path):
    """Where no file may be larger than 1000 bytes; in a process of its own, since limits stay."""
    sizes = [300, 10_000, 1_000_000]
    child = [sys.executable, "-c", IN_A_SMALL_PLACE, str(tmp_path), json.dumps(sizes)]
    told = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert re.findall(r"remembered (.+)", told.stdout) == [str(errno.EFBIG)] * len(sizes), told.stderr


def test_the_first_error_is_the_one_that_is_told(tmp_path):
    writer = engine()
    writer.save({}, str(tmp_path / "missing" / "state.pt"))
    writer.makedirs(str(tmp_path / "missing" / "deeper" / "still"), exist_ok=True)
    writer.save({}, str(tmp_path / "state.pt"))
    assert writer.failure.errno == errno.ENOENT
