"""Whatever happens while a checkpoint is written, a complete one is left, and nothing else is taken for one."""

import json
import os

import pytest

from tests.training.checkpointing.syscalls import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="follows system calls of Linux on x86-64")

FLAGS = {
    "dataset_samples": 13,  # 23 conversations to train on, 6 steps an epoch
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 1,
    "checkpoint_form": "trained",
    "logging_steps": 1,
}
NO_EVALUATION = {"eval_strategy": "no", "num_train_epochs": 100}
BACKGROUND = {"save_in_background": True}
"""Training goes on while a thread writes, and the thread is what is interrupted."""


def run(trainings, tmp_path, scenario, count=0, timeout=600, **flags):
    output, task = tmp_path / "run", tmp_path / "task.json"
    command = trainings.arguments(output, **{**FLAGS, **flags})
    task.write_text(json.dumps({"train": command, "output": str(output), "count": count, "seed": 0}))
    printed = trainings.run(
        [scenario, str(task)], module="tests.training.checkpointing.crash_runs", timeout=timeout
    )
    print("\n".join(line for line in printed.splitlines() if "tried=" in line or "saves failed" in line))
    tried = int(printed.rsplit("tried=", 1)[1].split()[0])
    assert tried >= max(count, 100 if scenario == "look" else 1) and "lost=0" in printed
    return printed


@pytest.mark.parametrize(
    "way",
    [
        pytest.param({}, marks=pytest.mark.slow, id="waiting"),
        pytest.param(BACKGROUND, marks=pytest.mark.long, id="in_background"),
    ],
)
def test_a_stop_after_any_change_to_the_disk(trainings, tmp_path, way):
    """Every write, fsync, rename and removal of two saves, of replacing best and of final: kill and power cut."""
    run(trainings, tmp_path, "look", max_steps=3, eval_strategy="steps", eval_steps=1, **way)


def disk_errors(trainings, tmp_path, count, way):
    """Full, read-only and broken disks, from a random place in a save on; training goes on, and saves again."""
    steps = 3 * count
    printed = run(
        trainings, tmp_path, "errors", count=count, timeout=900, max_steps=steps, **NO_EVALUATION, **way
    )
    assert "saves failed and were reported" in printed


@pytest.mark.slow
def test_forty_disk_errors(trainings, tmp_path):
    disk_errors(trainings, tmp_path, 40, {})


@pytest.mark.slow
def test_ten_disk_errors_in_the_background(trainings, tmp_path):
    disk_errors(trainings, tmp_path, 10, BACKGROUND)


@pytest.mark.long
def test_a_hundred_disk_errors_in_the_background(trainings, tmp_path):
    disk_errors(trainings, tmp_path, 100, BACKGROUND)


@pytest.mark.long
@pytest.mark.parametrize("way", [{}, BACKGROUND], ids=["waiting", "in_background"])
def test_killed_while_saving(trainings, tmp_path, way):
    """kill -9 at random moments, of a run alone and of two ranks at ZeRO-3; KILLS=300 for more."""
    count = int(os.environ.get("KILLS", "30"))
    run(trainings, tmp_path, "kill", count=count, timeout=60 * count, **NO_EVALUATION, **way)


@pytest.mark.long
def test_killed_three_hundred_times_with_a_save_in_flight(trainings, tmp_path):
    """As above, a run alone whose forks begin where its data are read and its model is made."""
    run(trainings, tmp_path, "kill_prepared", count=300, timeout=3600, **NO_EVALUATION, **BACKGROUND)
