"""A run's report: totals worked out by hand, tables, and a picture for every shape that a history can have."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from training.run_report.__main__ import main
from training.run_report.history import History
from training.run_report.summary import accuracy_table, as_markdown, dataset_table, run_table, write_report

pytestmark = pytest.mark.integration


def line(step: int, loss: float, **more: float) -> dict[str, float]:
    measures = {"tokens_per_second": 100.0, "supervised_tokens_per_second": 10.0, "images_per_second": 2.0}
    measures |= {"step_seconds": 0.5, "data_wait_share": 0.02, "peak_memory_gib": 1.5}
    measures |= {"learning_rate": 1e-3, "grad_norm": 1.0}
    return {"step": step, "epoch": step / 10, "loss": loss, **measures, **more}


def evaluated(step: int, loss: float, colour: float, count: float) -> dict[str, float]:
    losses = {"eval_loss": loss, "eval_loss/a": loss - 1, "eval_loss/b": loss + 1}
    both = {"eval_accuracy/colour": colour, "eval_accuracy/count": count, "eval_accuracy_seconds": 0.7}
    return {"step": step, "epoch": step / 10, **losses, "eval_accuracy": (colour + count) / 2, **both}


LOG = [
    evaluated(0, 5.0, 0.0, 0.2),
    line(1, 4.0, **{"loss/a": 3.0, "loss/b": 5.0}),
    line(5, 3.0, step_seconds=1.0, tokens_per_second=50.0, **{"loss/b": 3.0}),
    evaluated(5, 2.0, 0.9, 0.3),
    line(10, 2.0, mfu=0.4, **{"loss/a": 2.0, "loss/b": 2.0}),
    evaluated(10, 2.5, 0.6, 0.4),
    {"step": 10, "epoch": 1.0, "train_runtime": 9.0, "train_loss": 3.0},
]


def test_the_tables_say_totals_and_first_best_and_last() -> None:
    """1 step of 0.5 s, 4 of 1 s, 5 of 0.5 s: 100 x 0.5 + 50 x 4 + 100 x 2.5 tokens."""
    history = History(LOG, 20)
    run = dict(run_table(history))
    assert run["steps"] == "10 of 20, 1.00 epochs" and run["time in steps"] == "0 min 07 s"
    assert run["trained on"] == "500 tokens (70 supervised), 14 images"
    assert run["evaluation loss"] == "5.0000 -> 2.5000, best 2.0000 at step 5"
    assert run["answers right"] == "10.0% -> 50.0%, best 60.0% at step 5"
    assert run["generating answers"] == "2.1 s, 30.0% of the time in steps"
    assert run["speed, median"] == "100 tokens/s, 10 supervised tokens/s, 2.0 images/s, 0.50 s a step"
    assert run["MFU"] == "40.0% median, 40.0% best"
    assert accuracy_table(history)[1:] == [
        ("colour", "0.0%", "90.0%", "60.0%"),
        ("count", "20.0%", "40.0%", "40.0%"),
    ]
    assert as_markdown(dataset_table(history)).splitlines()[1:] == [
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 3.0000 | 2.0000 | 4.0000 | 1.0000 | 1.5000 |",
        "| b | 5.0000 | 2.0000 | 6.0000 | 3.0000 | 3.5000 |",
    ]


MANY = [
    line(step, 1 + 1 / step, **{f"loss/set {n}": float(1 + n) for n in range(13)}) for step in range(1, 99)
]


@pytest.mark.filterwarnings("error")  # such as those of a layout that finds no room
@pytest.mark.parametrize(
    "log",
    [
        LOG,
        [line(1, 4.0, **{"loss/a": 4.0}), {"step": 4, "epoch": 0.4, "eval_loss": 2.0, "eval_loss/b": 2.0}],
        [line(1, 4.0), line(2, float("nan"))],
        [{"step": 1, "loss": 2.0, "learning_rate": 0.1}],  # without extensions
        [],
        MANY,
    ],
    ids=["whole", "a dataset without evaluation", "no evaluation", "few measures", "nothing", "many"],
)
def test_every_history_can_be_reported(log: list[dict], tmp_path: Path) -> None:
    write_report(History(log, 20), tmp_path)
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
