"""Runs that are interrupted over and over end where an undisturbed one ends, bit for bit.

Every interruption hits another part of a run of two ranks, which then goes on from what is on the disk.
"""

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.checkpointing.folders import TRAINER_STATE, resumable_checkpoints
from training.exit_codes import RANK_LOST, STOPPED
from utils.distributed import cores

LONG = {"num_train_epochs": 3}  # 42 steps


def launchers_wait() -> float:
    """Seconds between a launcher's SIGTERM and SIGKILL, and more where other programs want these cores too."""
    return 30 * max(1.0, os.getloadavg()[0] / cores())


def flags(trainings, output: Path, **others: object) -> list[str]:
    """A run of 14 steps of two micro-batches on two ranks; everything that a stop can cut in two is in it."""
    values = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "zero_stage": 3,
        "lang_lora_dim": 2,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "eval_on_start": False,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": 2,
        "resume_from_checkpoint": "auto",
        **others,
    }
    return trainings.arguments(output, **values)


@pytest.fixture(scope="module")
def undisturbed(forks, trainings, tmp_path_factory) -> Callable[[dict], Path]:
    """A run that ends undisturbed, by its flags; each is made once."""

    @cache
    def run(*more: tuple[str, object]) -> Path:
        output = tmp_path_factory.mktemp("undisturbed")
        forks.run(flags(trainings, output, **dict(more)), timeout=3000)
        return output

    return lambda more: run(*more.items())


def interrupt(forks, trainings, output: Path, times: int, hit, after=(1,), **others) -> int:
    """Start and interrupt a run until it has been `times` times; `hit` does it and checks how it ended.

    after: how many steps each part of the run makes before, one of these numbers.

    Returns how many interruptions there were.
    """
    done = 0
    rng = random.Random(output.name)
    for _ in range(2 * times + 1):
        forked = forks.start(flags(trainings, output, **others))
        if done == times:
            assert forked.wait(3000) == [0, 0], forked.printed[-4000:]
            return done
        forked.await_line("(?s)" + ".*step [ 0-9]+/[^\n]* lr " * rng.choice(after))
        time.sleep(rng.random() * 0.3)
        done += hit(forked, rng)
    raise AssertionError(f"the run ended before {times} interruptions: there were {done}")


def assert_nothing_lost(undisturbed: Path, output: Path) -> None:
    """Two runs that have ended have the same losses, evaluations and weights."""
    one, two = (
        json.loads((folder / TRAINER_STATE).read_text())["log_history"] for folder in (undisturbed, output)
    )
    for value in ("loss", "eval_loss"):
        assert [line[value] for line in one if value in line] == [
            line[value] for line in two if value in line
        ]
    one, two = (load_file(folder / "final" / "model.safetensors") for folder in (undisturbed, output))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    assert not list(output.glob(".*partial*"))


def stopped(forked, rng: random.Random, signals=(signal.SIGTERM, signal.SIGUSR1)) -> int:
    """Ask one rank or both to stop; both do, at the same step and in time, and say where to go on."""
    ranks = rng.choice([[0], [1], [0, 1]])
    forked.signal(rng.choice(signals), ranks, children=True)
    codes = forked.wait(launchers_wait())
    if codes == [0, 0]:
        return 0  # it had come to its end
    assert codes == [STOPPED, STOPPED], forked.printed[-4000:]
    step = forked.printed.rsplit("stopped after step ", 1)[1].split()[0]
    output = resumable_checkpoints(Path(forked.printed.rsplit("checkpoint is ", 1)[1].split(":")[0]).parent)
    assert output[-1].name == f"checkpoint-{step}"
    assert not forked.left_behind()
    return 1


def terminated(forked, rng: random.Random) -> int:
    """Ask as launchers do."""
    return stopped(forked, rng, (signal.SIGTERM,))


def lost(forked, rng: random.Random) -> int:
    """Kill one rank; the other ends quickly, and names it."""
    rank = rng.choice([0, 1])
    forked.signal(signal.SIGKILL, [rank])
    codes = forked.wait(60)
    if codes[1 - rank] == 0:
        return 0
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == RANK_LOST, forked.printed[-4000:]
    assert f"error: rank {rank} (" in forked.printed
    assert "resume from it with" in forked.printed or "starts afresh" in forked.printed
    assert not forked.left_behind()
    return 1


INTERRUPTIONS = {  # how often, by what, after how many steps (3, 6, ... are saved), other flags
    "3_times": (3, "stopped", stopped, (1,), {}),
    "2_times": (2, "killed rank", lost, (4, 5), {}),
    "20_times_SIGTERM": (20, "SIGTERM", terminated, (1,), LONG),
    "20_times_killed": (20, "killed rank", lost, (1, 3, 4), LONG),
}


@pytest.mark.parametrize(
    "times, what, hit, after, more",
    [
        pytest.param(*case, id=name, marks=pytest.mark.long if "20" in name else pytest.mark.slow)
        for name, case in INTERRUPTIONS.items()
    ],
)
def test_interrupted(forks, trainings, undisturbed, tmp_path, times, what, hit, after, more):
    whole = undisturbed(more)
    tried = interrupt(forks, trainings, tmp_path, times, hit, after, dataloader_num_workers=1, **more)
    assert_nothing_lost(whole, tmp_path)
    print(f"{what}: tried={tried} lost=0")


@pytest.mark.slow
def test_stopped_while_it_evaluates(forks, trainings, tmp_path):
    """The checkpoint is of the step that was to be evaluated, and the evaluation is made up for."""
    often = {
        "data_train_split_ratio": 0.2,
        "per_device_eval_batch_size": 1,
        "eval_steps": 1,
        "save_strategy": "no",
        "max_steps": 3,
    }
    whole = forks.run(flags(trainings, tmp_path / "whole", **often))

    def evaluations(printed: str) -> list[str]:
        return re.findall("step [123]/3 .*evaluation loss .*", printed)

    assert len(evaluations(whole)) == 3
    for step in (1, 3):  # 3: no step is left to make when the run goes on
        output = tmp_path / f"cut-{step}"
        command = flags(trainings, output, **often)
        forked = forks.start(command)
        forked.await_line(f"step +{step}/[^\n]* lr ")
        forked.signal(signal.SIGTERM, [1])
        assert forked.wait() == [STOPPED, STOPPED], forked.printed[-4000:]
        assert f"stopped after step {step} " in forked.printed
        first = forked.printed
        second = forks.run(command)
        assert evaluations(first) + evaluations(second) == evaluations(whole)
        assert_nothing_lost(tmp_path / "whole", output)
