"""Checkpoints that are written while training goes on: the same as those that it waits for, and as safe."""

import re
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.training.checkpointing.test_resume import differences, equal
from training.checkpointing.folders import resumable_checkpoints, resume_folder
from training.exit_codes import RANK_LOST, STOPPED

pytestmark = pytest.mark.slow

STEPS = 6
SHARDED = {"zero_stage": 3, "per_device_train_batch_size": 2}  # on two ranks


def flags(trainings, output: Path, **others: object) -> list[str]:
    values = {
        "dataset_samples": 13,
        "max_steps": STEPS,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 2,
        "lang_lora_dim": 2,
        "checkpoint_form": "trained",
        "save_in_background": True,
        "resume_from_checkpoint": "auto",
        **others,
    }
    return trainings.arguments(output, **values)


@pytest.fixture(scope="module")
def waiting(forks, trainings, tmp_path_factory) -> Path:
    """A run of two ranks at ZeRO-3 that waits for its saves."""
    output = tmp_path_factory.mktemp("waiting")
    forks.run(flags(trainings, output, **SHARDED, save_in_background=False))
    return output


def assert_same(one: Path, two: Path) -> None:
    """Two checkpoints hold the same files with the same content, but for times and where they lie."""
    names = [{path.relative_to(each) for path in each.rglob("*") if path.is_file()} for each in (one, two)]
    assert names[0] == names[1] and differences(one, two) == []


def assert_nothing_lost(one: Path, two: Path) -> None:
    """Two runs that have ended have the same checkpoints."""
    assert [each.name for each in resumable_checkpoints(one)] == [f"checkpoint-{step}" for step in (2, 4, 6)]
    for folder in resumable_checkpoints(two):
        assert_same(one / folder.name, folder)
    assert equal(*(load_file(each / "final" / "trained.safetensors") for each in (one, two)))
    assert not list(two.glob(".*partial*"))


@pytest.mark.parametrize("stage, ranks", [(0, 1), pytest.param(2, 2, marks=pytest.mark.long), (3, 2)])
def test_a_write_does_not_see_the_steps_after_it(forks, trainings, tmp_path, stage, ranks):
    """Each write waits until another step is done; what it leaves is what a save leaves that training waits for."""
    sizes = {"zero_stage": stage, "per_device_train_batch_size": 4 // ranks}
    forks.run(flags(trainings, tmp_path / "waits", **sizes, save_in_background=False), ranks)
    printed = forks.run(flags(trainings, tmp_path / "goes on", **sizes), ranks, disk={"kind": "held"})
    order = re.findall(r"step +(\d)/|(a write is held)", printed)
    held = [place for place, found in enumerate(order) if found[1]]
    assert len(held) == 3 * ranks
    for place in held[:-ranks]:
        assert any(int(step) in (3, 5) for step, _ in order[place:] if step), "training went on"
    assert_nothing_lost(tmp_path / "waits", tmp_path / "goes on")


def test_a_stop_waits_for_the_write_and_saves_its_own_step(forks, trainings, waiting, tmp_path):
    command = flags(trainings, tmp_path, **SHARDED)
    forked = forks.start(command, disk={"kind": "stop", "ranks": [1]})
    assert forked.wait() == [STOPPED, STOPPED], forked.printed[-4000:]
    step = int(forked.printed.rsplit("stopped after step ", 1)[1].split()[0])
    assert {"checkpoint-2", f"checkpoint-{step}"} <= {each.name for each in resumable_checkpoints(tmp_path)}
    assert not forked.left_behind()
    forks.run(command)
    for folder in resumable_checkpoints(tmp_path):
        if (waiting / folder.name).exists():
            assert_same(waiting / folder.name, folder)
    assert equal(*(load_file(each / "final" / "trained.safetensors") for each in (waiting, tmp_path)))


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_full_disk_costs_the_checkpoint_that_is_being_written(forks, trainings, waiting, tmp_path, rank):
    disk = {"kind": "full", "at": 2, "ranks": [rank]}
    printed = forks.run(flags(trainings, tmp_path, **SHARDED), disk=disk)
    said = re.findall("checkpoint-2 could not be written .*", printed)
    assert len(said) == 1 and "No space left on device" in said[0] and "GB are free there" in said[0]
    assert "there is no checkpoint yet; training goes on, free the disk before the next save" in said[0]
    assert [each.name for each in resumable_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]
    assert_nothing_lost(waiting, tmp_path)


def test_the_last_failure_that_is_allowed_ends_the_training_as_ever(forks, trainings, tmp_path):
    """A save whose failure would end the training is waited for: here, every one."""
    command = flags(trainings, tmp_path, max_failed_saves=0)
    forked = forks.start(command, ranks=1, disk={"kind": "full", "at": 1})
    assert forked.wait() == [0], "no write in the background, so none fails"
    assert len(resumable_checkpoints(tmp_path)) == 3


@pytest.mark.parametrize("at", [9, *(pytest.param(at, marks=pytest.mark.long) for at in (1, 30))])
def test_killed_in_flight(forks, trainings, waiting, tmp_path, at):
    """One rank, at one of its fsyncs; the other ends, and what is resumed ends as if nothing had been."""
    command = flags(trainings, tmp_path, **SHARDED)
    rank = at % 2 if at < 20 else 0  # the first one writes more
    forked = forks.start(command, disk={"kind": "kill", "at": at, "ranks": [rank]})
    codes = forked.wait()
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == RANK_LOST, forked.printed[-4000:]
    if (found := resume_folder(tmp_path, "auto")) is not None:
        assert_same(waiting / found.name, found)
    forks.run(command)
    assert_nothing_lost(waiting, tmp_path)
