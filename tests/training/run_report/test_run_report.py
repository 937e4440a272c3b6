"""A run's report: totals worked out by hand, tables, and a picture for every shape that a history can have."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from training.run_report.__main__ import main
from training.run_report.history import History, Series
from training.run_report.summary import (
    accuracy_table,
    as_markdown,
    as_text,
    dataset_table,
    run_table,
    write_report,
)

pytestmark = pytest.mark.integration


def line(step: int, loss: float, **more: float) -> dict[str, float]:
    measures = {
        "tokens_per_second": 100.0,
        "supervised_tokens_per_second": 10.0,
        "images_per_second": 2.0,
        "step_seconds": 0.5,
        "data_wait_share": 0.02,
        "peak_memory_gib": 1.5,
    }
    return {
        "step": step,
        "epoch": step / 10,
        "loss": loss,
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        **measures,
        **more,
    }


def answers(colour: float, count: float) -> dict[str, float]:
    both = {"eval_accuracy/colour": colour, "eval_accuracy/count": count}
    return {"eval_accuracy": (colour + count) / 2, **both, "eval_accuracy_seconds": 0.7}


LOG = [
    {"step": 0, "epoch": 0.0, "eval_loss": 5.0, "eval_loss/a": 4.0, "eval_loss/b": 6.0, **answers(0.0, 0.2)},
    line(1, 4.0, **{"loss/a": 3.0, "loss/b": 5.0}),
    line(5, 3.0, step_seconds=1.0, tokens_per_second=50.0, **{"loss/b": 3.0}),
    {"step": 5, "epoch": 0.5, "eval_loss": 2.0, "eval_loss/a": 1.0, "eval_loss/b": 3.0, **answers(0.9, 0.3)},
    line(10, 2.0, mfu=0.4, **{"loss/a": 2.0, "loss/b": 2.0}),
    {"step": 10, "epoch": 1.0, "eval_loss": 2.5, "eval_loss/a": 1.5, "eval_loss/b": 3.5, **answers(0.6, 0.4)},
    {"step": 10, "epoch": 1.0, "train_runtime": 9.0, "train_loss": 3.0},
]


def test_totals_are_rates_times_the_time_in_steps() -> None:
    history = History.of(LOG, 20)
    assert history.seconds == 1 * 0.5 + 4 * 1.0 + 5 * 0.5
    assert history.total("tokens") == 100 * 0.5 + 50 * 4.0 + 100 * 2.5
    assert history.total("images") == 2 * 7.0
    assert history.datasets == ["a", "b"] and history.last_step == 10


def test_the_tables_say_first_best_and_last() -> None:
    history = History.of(LOG, 20)
    run = dict(run_table(history))
    assert run["steps"] == "10 of 20, 1.00 epochs"
    assert run["evaluation loss"] == "5.0000 -> 2.5000, best 2.0000 at step 5"
    assert run["answers right"] == "10.0% -> 50.0%, best 60.0% at step 5"
    assert run["generating answers"] == "2.1 s, 30.0% of the time in steps"
    assert accuracy_table(history)[1:] == [
        ("colour", "0.0%", "90.0%", "60.0%"),
        ("count", "20.0%", "40.0%", "40.0%"),
    ]
    assert run["trained on"] == "500 tokens (70 supervised), 14 images"
    assert run["MFU"] == "40.0% median, 40.0% best"
    table = dataset_table(history)
    assert table[1] == ("a", "3.0000", "2.0000", "4.0000", "1.0000", "1.5000")
    assert table[2] == ("b", "5.0000", "2.0000", "6.0000", "3.0000", "3.5000")
    assert as_markdown(table).splitlines()[1:3] == [
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 3.0000 | 2.0000 | 4.0000 | 1.0000 | 1.5000 |",
    ]
    assert len({len(text) for text in as_text(table)}) == 1


def test_smoothing_begins_and_ends_with_the_series_and_keeps_straight_lines() -> None:
    straight = Series(np.arange(200), np.linspace(3.0, 1.0, 200))
    np.testing.assert_allclose(straight.smoothed(), straight.values)
    noisy = Series(np.arange(200), np.random.default_rng(0).normal(size=200))
    assert noisy.smoothed().std() < 0.5 * noisy.values.std()
    assert noisy.smoothed()[[0, -1]].tolist() == pytest.approx(noisy.values[[0, -1]].tolist())
    few = Series(np.arange(3), np.array([1.0, 5.0, 2.0]))
    np.testing.assert_allclose(few.smoothed(), few.values)


@pytest.mark.filterwarnings("error")  # such as those of a layout that finds no room
@pytest.mark.parametrize(
    "log",
    [
        LOG,
        [line(1, 4.0, **{"loss/a": 4.0}), {"step": 4, "epoch": 0.4, "eval_loss": 2.0, "eval_loss/b": 2.0}],
        [each for each in LOG if "eval_loss" not in each],
        LOG[1:2],
        [{"step": 1, "loss": 2.0, "learning_rate": 0.1}],  # of an earlier version
        [],
        [
            line(step, 1.0 + 1 / step, **{f"loss/set {n}": 1.0 + n for n in range(13)})
            for step in range(1, 99)
        ],
    ],
    ids=[
        "whole",
        "a dataset without evaluation",
        "no evaluation",
        "one line",
        "few measures",
        "nothing",
        "thirteen datasets",
    ],
)
def test_every_history_can_be_reported(log: list[dict], tmp_path: Path) -> None:
    write_report(History.of(log, 20), tmp_path)
    with PIL.Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1320, 880) and picture.format == "PNG"
        assert len(set(np.asarray(picture.convert("L")).ravel())) > 10  # something is drawn
    assert (tmp_path / "summary.md").read_text().startswith(f"# Training run {tmp_path.name}\n")


def test_the_command_takes_the_furthest_state_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = {"global_step": 5, "max_steps": 20, "log_history": LOG[:4]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert main([str(tmp_path)]) == 0
    assert "| steps | 5 of 20" in (tmp_path / "summary.md").read_text()
    assert main([str(tmp_path / "elsewhere")]) == 2
    [message] = capsys.readouterr().err.splitlines()[-1:]
    assert message.startswith("error: ") and "--output_dir" in message
