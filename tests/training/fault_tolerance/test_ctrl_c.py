"""Ctrl-C, and a second training into the same folder: nothing is lost by either."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from training.checkpointing.folders import resumable_checkpoints
from training.exit_codes import FINISHED, INTERRUPTED, MISTAKE


@pytest.mark.slow
def test_ctrl_c_saves_and_nothing_is_trained_over(forks, trainings, tmp_path):
    """Two ranks; a terminal signals all of them, and DeepSpeed's launcher sends SIGTERM after it."""
    endless = {"max_steps": 5000, "eval_strategy": "no", "zero_stage": 2, "dataloader_num_workers": 1}
    first = forks.start(trainings.arguments(tmp_path, **endless))
    first.await_line("step +2/")
    first.signal(signal.SIGINT, [0, 1], children=True)
    first.signal(signal.SIGTERM, [0, 1], children=True)
    assert first.wait() == [INTERRUPTED, INTERRUPTED], first.printed
    step, folder = re.search(
        r"stopped after step (\d+) by Ctrl-C .*checkpoint is (.*): resume from it with --resume_from_checkpoint",
        first.printed,
    ).groups()
    assert [str(each) for each in resumable_checkpoints(tmp_path)] == [folder]
    assert folder.endswith(f"checkpoint-{step}") and not first.left_behind()

    kept = content(tmp_path)
    again = forks.start(trainings.arguments(tmp_path, **endless))
    assert again.wait() == [MISTAKE, MISTAKE]
    [line] = again.printed.splitlines()  # nothing was read before
    assert line.startswith(f"error: {tmp_path} holds the results of an earlier run (checkpoint-{step}): give")
    assert content(tmp_path) == kept

    # An error in what follows costs nothing either: the old run goes when the new one begins.
    over = {**endless, "overwrite_output_dir": True, "max_steps": 1}
    wrong = forks.start(trainings.arguments(tmp_path, **over, dataset_names=["no_such_set"]))
    assert wrong.wait() == [MISTAKE, MISTAKE] and content(tmp_path) == kept
    both = forks.start(trainings.arguments(tmp_path, **over, resume_from_checkpoint="auto"))
    assert both.wait() == [MISTAKE, MISTAKE] and content(tmp_path) == kept
    new = forks.start(trainings.arguments(tmp_path, **over))
    assert new.wait() == [FINISHED, FINISHED], new.printed
    assert {"checkpoint-1", "final"} <= set(os.listdir(tmp_path))
    assert not (tmp_path / f"checkpoint-{step}").exists()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_run_that_stands(forks, trainings, tmp_path):
    """The other rank is frozen, so this one waits for it outside of Python."""
    run = forks.start(trainings.arguments(tmp_path, max_steps=5000, eval_strategy="no"))
    run.await_line("step +2/")
    run.signal(signal.SIGSTOP, [1])
    time.sleep(2)
    run.signal(signal.SIGINT, [0])
    run.await_line("press it again to stop at once")
    run.signal(signal.SIGINT, [0])
    run.await_line("error: stopped at once by Ctrl-C, without saving; no checkpoint is complete")
    run.signal(signal.SIGCONT, [1])
    first, other = run.wait()
    assert first == INTERRUPTED and other != FINISHED
    assert not run.left_behind()


def content(folder: Path) -> dict[str, int]:
    """The files of all checkpoints, with their times of change."""
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("checkpoint-*/**/*")}
