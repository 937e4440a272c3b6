"""Every file of a checkpoint, damaged in every way: noticed, named, and the checkpoint before it taken."""

import logging
import os
import shutil
from itertools import product
from pathlib import Path

import pytest

from training.checkpointing.folders import ResumeError, read_manifest, resume_folder

pytestmark = pytest.mark.slow


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def a_bit_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def a_block_of_zeros(path: Path) -> None:
    """What a power cut leaves of a file whose size reached the disk before its content."""
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))


DAMAGES = (missing, empty, cut_short, longer, a_bit_flipped, a_block_of_zeros)


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
        path.unlink()  # a file of its own, where the link was
        path.write_bytes(content)
        damage(path)
        caplog.clear()
        tried += 1
        found = resume_folder(copy, "auto")
        with pytest.raises(ResumeError, match="the newest complete one is checkpoint-1") as named:
            resume_folder(copy, str(copy / "checkpoint-2"))
        if found != copy / "checkpoint-1" or name not in caplog.text or name not in str(named.value):
            lost.append((name, damage.__name__))
        shutil.rmtree(copy)
    print(f"damaged files: tried={tried} lost={len(lost)}")
    assert tried >= 60 and not lost


def test_files_that_come_later_do_no_harm(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "checkpoint-2" / "notes.txt").write_text("looks good")
    assert resume_folder(tmp_path / "copy", "auto").name == "checkpoint-2"
