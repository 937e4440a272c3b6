"""TensorBoard and Weights & Biases: what is missing is said before anything starts; a resumed run is one run."""

import errno
import importlib.util
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerState

from training.metrics.trackers import TensorBoard, check_reporters
from utils.commands import UsageError


def test_a_reporter_that_is_not_known_or_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--report_to weights: not known; give some of .*wandb.* or none"):
        check_reporters(["weights"])
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else found(name, *more)
    )
    with pytest.raises(
        UsageError, match="--report_to wandb: its library is not installed; pip install wandb"
    ):
        check_reporters(["tensorboard", "wandb"])


class FullDisk:
    """A writer whose thread has found the disk full: it says so from then on."""

    def add_scalar(self, *args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_lines_of_tensorboard_and_not_the_run(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    board, state = TensorBoard(FullDisk()), TrainerState()
    for step in range(3):  # the disk is freed after the first line
        state.global_step = step
        board.on_log(None, state, None, logs={"loss": 1.0})
    [warning] = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    assert str(tmp_path / "events") in warning and "No space left on device" in warning
    board.on_train_end(None, state, None)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]


@pytest.mark.slow
def test_a_resumed_run_is_whole_in_every_report(
    trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard, the history, its picture and its summary; Weights & Biases without a network."""
    has_wandb = importlib.util.find_spec("wandb") is not None
    monkeypatch.setenv("WANDB_MODE", "offline")
    flags = {
        "report_to": ["tensorboard", *(["wandb"] if has_wandb else [])],
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "peak_tflops": 0.05,
        "lr_scheduler_type": "constant",
    }
    first = trainings.run(trainings.arguments(tmp_path, **flags, max_steps=2), timeout=900)
    run = (tmp_path / "wandb_run.txt").read_text() if has_wandb else None
    printed = trainings.run(
        trainings.arguments(tmp_path, **flags, max_steps=4, resume_from_checkpoint=True), timeout=900
    )
    for text in (first, printed):
        assert "MFU" in text and "GiB" in text and "(llava " in text and "peak memory of a process" in text

    summary = (tmp_path / "summary.md").read_text()
    assert "| steps | 4 of 4" in summary and "| llava_dial |" in summary
    assert (tmp_path / "curves.png").stat().st_size > 20_000
    history = trainings.history(tmp_path)
    assert [line["step"] for line in history if "loss" in line] == [1, 2, 3, 4]
    assert all(
        0 < line["mfu"] < 1 and 0 <= line["data_wait_share"] <= 1 for line in history if "loss" in line
    )

    scalars = {}
    for folder in {file.parent for file in tmp_path.rglob("events.out.tfevents*")}:
        events = EventAccumulator(str(folder)).Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, set()).update(event.step for event in events.Scalars(tag))
    assert scalars["train/tokens_per_second"] == {1, 2, 3, 4} and scalars["train/mfu"] == {1, 2, 3, 4}
    assert scalars["eval/loss/llava"] == {0, 2, 4}
    assert scalars["train/loss/llava"] | scalars["train/loss/llava_dial"] == {1, 2, 3, 4}
    if has_wandb:
        assert (tmp_path / "wandb_run.txt").read_text() == run
        assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{run.strip()}"))) >= 1


@pytest.mark.slow
def test_weights_and_biases_without_a_key_is_a_message(
    trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    printed = trainings.run(trainings.arguments(tmp_path / "run", report_to="wandb"), expected=2)
    [message] = [text for text in printed.splitlines() if text.startswith("error: ")]
    assert "--report_to wandb" in message and "WANDB_MODE=offline" in message
    assert "Traceback" not in printed
