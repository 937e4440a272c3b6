import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[3]


def engine(keep=lambda state: lambda: state):
    from training.checkpointing.deepspeed_state import (
        DurableCheckpointEngine,  # imports DeepSpeed, which takes seconds
    )

    return DurableCheckpointEngine(
        SimpleNamespace(checkpoint_config={"checkpoint_serialization": True}), keep
    )


IN_A_SMALL_PLACE = """
import json, resource, sys
import torch
from tests.training.checkpointing.test_deepspeed_state import engine

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for size in json.loads(sys.argv[2]):
    writer = engine()
    writer.save({"weight": torch.zeros(size)}, f"{sys.argv[1]}/{size}.pt")
    try:
        writer.writes[0]()
    except OSError as error:
        print("raised", error.errno, flush=True)
"""


def test_what_is_written_reads_back(tmp_path):
    writer = engine()
    writer.makedirs(str(tmp_path / "folder"))
    writer.save({"weight": torch.arange(5)}, str(tmp_path / "folder" / "state.pt"))
    assert not (tmp_path / "folder").exists(), "DeepSpeed's processes must not meet a disk while they save"
    for write in writer.writes:
        write()
    assert torch.load(tmp_path / "folder" / "state.pt")["weight"].tolist() == [0, 1, 2, 3, 4]


def test_the_disk_s_own_reason_is_raised(tmp_path):
    """Where no file may be larger than 1000 bytes; in a process of its own, since limits stay."""
    sizes = [300, 10_000, 1_000_000]
    child = [sys.executable, "-c", IN_A_SMALL_PLACE, str(tmp_path), json.dumps(sizes)]
    told = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert re.findall(r"raised (.+)", told.stdout) == [str(errno.EFBIG)] * len(sizes), told.stderr


def test_no_room_for_a_copy_costs_the_checkpoint(tmp_path):
    """As an error of the disk does, and not in the middle of DeepSpeed's save."""

    def keep(state):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    writer = engine(keep)
    writer.save({}, str(tmp_path / "state.pt"))
    with pytest.raises(OSError, match="--save_in_background false") as raised:
        writer.writes[0]()
    assert raised.value.errno == errno.ENOMEM


def test_deepspeed_s_scripts_are_written_later_too(tmp_path):
    copied = []

    class Engine:
        def _copy_recovery_script(self, folder):
            copied.append(folder)

    deepspeed, writer = Engine(), engine()
    with writer.of(deepspeed):
        assert deepspeed.checkpoint_engine is writer
        deepspeed._copy_recovery_script(str(tmp_path))
    assert not copied
    writer.writes[0]()
    deepspeed._copy_recovery_script("outside of a save")
    assert copied == [str(tmp_path), "outside of a save"]
