"""Whatever happens while a checkpoint is written, a complete one is left, and nothing else is taken for one."""

import os
import random
import re
import signal
from pathlib import Path

import pytest

from tests.training.fault_tolerance.disks import step_of
from training.checkpointing.folders import resume_folder
from training.exit_codes import RANK_LOST

FLAGS = {
    "dataset_samples": 13,  # 23 conversations to train on, 6 steps an epoch
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 1,
    "checkpoint_form": "trained",
}
NO_EVALUATION = {"eval_strategy": "no", "num_train_epochs": 100}
WAITING = pytest.param({}, marks=pytest.mark.slow, id="waiting")
BACKGROUND = {"save_in_background": True}
"""Training goes on while a thread writes, and the thread is what is interrupted."""
LONG_IN_BACKGROUND = pytest.param(BACKGROUND, marks=pytest.mark.long, id="in_background")


def counted(forks, trainings, output: Path, disk: dict, at_least: int, **flags: object) -> str:
    """A training over a disk that counts what it finds; what it printed."""
    disk |= {"output": str(output), "background": "save_in_background" in flags}
    printed = forks.run(trainings.arguments(output, **FLAGS, **flags), ranks=1, timeout=900, disk=disk)
    line = re.findall("tried=.*", printed)[-1]
    print(line)
    tried, lost = map(int, re.findall(r"\d+", line))
    assert tried >= at_least and lost == 0, printed[-4000:]
    return printed


@pytest.mark.parametrize("way", [WAITING, LONG_IN_BACKGROUND])
def test_a_stop_at_any_change_to_the_disk(forks, trainings, tmp_path, way):
    """Every operation of two saves, of replacing best and of final: kill and power cut."""
    evaluated = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    counted(forks, trainings, tmp_path / "run", {"kind": "looked"}, 100, **evaluated, **way)


@pytest.mark.parametrize(
    "count, way",
    [
        pytest.param(40, {}, marks=pytest.mark.slow, id="forty"),
        pytest.param(10, BACKGROUND, marks=pytest.mark.slow, id="ten_in_the_background"),
        pytest.param(100, BACKGROUND, marks=pytest.mark.long, id="hundred_in_the_background"),
    ],
)
def test_disk_errors(forks, trainings, tmp_path, count, way):
    """Full, read-only and broken disks, from a random place in a save on; training goes on, and saves again."""
    output, disk = tmp_path / "run", {"kind": "broken", "count": count}
    flags = {**NO_EVALUATION, "max_steps": 3 * count, "max_failed_saves": 1000, **way}
    printed = counted(forks, trainings, output, disk, count, **flags)
    assert "could not be written" in printed
    assert not list(output.glob(".checkpoint*")), "left by a save that failed, on a disk that is sound again"


@pytest.mark.long
@pytest.mark.parametrize("way", [{}, BACKGROUND], ids=["waiting", "in_background"])
def test_killed_while_saving(forks, trainings, tmp_path, way):
    """kill -9 at random moments, of a run alone and (a fifth) of two ranks at ZeRO-3; KILLS=300 for more.

    Each run goes on from what the last one left, to the losses of a run that was never killed.
    """
    kills = int(os.environ.get("KILLS", "30"))
    sharded = {"zero_stage": 3, "per_device_train_batch_size": 2}
    lost = 0
    for ranks, count, more in ((1, kills - kills // 5, {}), (2, kills // 5, sharded)):
        flags = {**NO_EVALUATION, "max_steps": 2 * count + 20, **more, **way}
        lost += kill(forks, trainings, tmp_path / f"on {ranks}", ranks, count, flags)
    print(f"killed: tried={kills} lost={lost}")
    assert lost == 0


def kill(forks, trainings, folder: Path, ranks: int, kills: int, flags: dict[str, object]) -> int:
    """How many of so many kills lost something."""
    folder.mkdir()
    whole, output = folder / "whole", folder / "run"
    rng, tried, lost, seconds = random.Random(0), 0, 0, 0.1
    disk = {"kind": "killed", "background": "save_in_background" in flags}
    once = {**FLAGS, **flags, "save_steps": flags["max_steps"]}
    forks.run(trainings.arguments(whole, **once), ranks)
    expected = trainings.losses(whole)
    command = trainings.arguments(output, **FLAGS, **flags, resume_from_checkpoint="auto")
    while tried < kills:
        before = resume_folder(output, "auto")
        hit = rng.choice([[0], [1], [0, 1]]) if ranks > 1 else [0]
        moment = {"save": rng.choice((1, 2, 2, 3)), "after": rng.uniform(0, seconds), "ranks": hit}
        forked = forks.start(command, ranks, {**disk, **moment})
        codes = forked.wait()
        assert set(codes) <= {-signal.SIGKILL, RANK_LOST}, (codes, forked.printed[-4000:])
        seconds = float([seconds, *re.findall(r"a save took ([\d.]+) s", forked.printed)][-1])
        if "it was quicker" in forked.printed:
            continue
        tried += 1
        found = resume_folder(output, "auto")
        is_lost = step_of(found) < step_of(before)
        if found is not None:
            is_lost |= trainings.losses(output) != expected[: step_of(found)]
        lost += is_lost
        if is_lost or tried % 10 == 0:
            print(f"{tried} killed, {lost} lost: {found} after {before}")
    return lost
