"""Every file of a checkpoint, damaged in every way: noticed, named, and the checkpoint before it taken."""

import logging
import os
import shutil
from itertools import product
from pathlib import Path

import pytest

from training.checkpointing.folders import ResumeError, read_manifest, resume_folder

pytestmark = pytest.mark.slow


DAMAGES = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "a bit flipped": lambda content: content[:9] + bytes([content[9] ^ 1]) + content[10:],
    # What a power cut leaves of a file whose size reached the disk before its content.
    "zeros": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
}


@pytest.fixture(scope="module")
def run(trainings, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run")
    trainings.run(
        trainings.arguments(
            output, max_steps=2, save_strategy="steps", save_steps=1, eval_strategy="no", dataset_samples=8
        )
    )
    return output


def test_damaged_files(run, tmp_path, caplog):
    newest = run / "checkpoint-2"
    files = [*read_manifest(newest).files, "manifest.json"]
    assert any(name.startswith("global_step2/") for name in files) and "trained.safetensors" in files
    logging.getLogger("training").propagate = True
    tried, lost = 0, []
    for name, damage in product(files, DAMAGES):
        copy = tmp_path / "copy"
        shutil.copytree(run, copy, copy_function=os.link)
        path = copy / "checkpoint-2" / name
        content = path.read_bytes()
        path.unlink()  # a link
        if (damaged := DAMAGES[damage](content)) is not None:
            path.write_bytes(damaged)
        caplog.clear()
        tried += 1
        found = resume_folder(copy, "auto")
        with pytest.raises(ResumeError, match="the newest complete one is checkpoint-1") as named:
            resume_folder(copy, str(copy / "checkpoint-2"))
        if found != copy / "checkpoint-1" or name not in caplog.text or name not in str(named.value):
            lost.append((name, damage))
        shutil.rmtree(copy)
    print(f"damaged files: tried={tried} lost={len(lost)}")
    assert tried >= 60 and not lost
