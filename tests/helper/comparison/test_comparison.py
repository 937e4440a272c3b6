"""Comparing attentions: nothing is trained twice, numbers worked out by hand, and what is said of them."""

import json
import os
from pathlib import Path

import PIL.Image
import pytest

import helper.compare
from helper.comparison.cells import LEARNING, Cell, ComparisonError, Outcome, Outcomes, grid, settings_of
from helper.comparison.chart import draw
from helper.comparison.page import accuracy_table, page, verdicts
from helper.comparison.statistics import Mean, accuracy, lead
from helper.comparison.training import shared_out
from helper.miniature.world import WorldSize, write_world

ATTENTIONS = ("mmca", "causal", "cross")


def outcome(cell: Cell, right: float, steps: int = 9) -> Outcome:
    return Outcome(cell, right, 0.4, {"color": right, "which": right / 2}, 800, 0.5, steps, 60.0)


def results(**right: list[float]) -> list[Outcome]:
    """Of each attention the accuracies after 100 records, seed by seed."""
    return [
        outcome(Cell(100, seed, attention), value)
        for attention, values in right.items()
        for seed, value in enumerate(values)
    ]


def test_a_grid_compares_on_the_same_data_before_more_data() -> None:
    cells = grid(ATTENTIONS, [200, 100], [1, 2])
    assert len(cells) == len(set(cells)) == 12
    assert [cell.attention for cell in cells[:3]] == list(ATTENTIONS)
    assert [cell.samples for cell in cells] == [100] * 6 + [200] * 6


def test_outcomes_are_kept_and_never_mixed_with_those_of_other_settings(tmp_path: Path) -> None:
    path, [first, second, *_] = tmp_path / "outcomes.json", grid(ATTENTIONS, [100], [1])
    Outcomes(path, {"LR": "1"}).add(outcome(first, 0.5))
    again = Outcomes(path, {"LR": "1"})
    assert first in again and second not in again
    assert again.of([first, second]) == [outcome(first, 0.5)]
    with pytest.raises(ComparisonError, match=r"outcomes of other settings \(LR\): remove it"):
        Outcomes(path, {"LR": "2"})
    path.write_text("{")
    with pytest.raises(ComparisonError, match="not a file of outcomes"):
        Outcomes(path, {"LR": "1"})


def test_means_and_leads_over_seeds() -> None:
    outcomes = results(mmca=[0.60, 0.70, 0.80], causal=[0.55, 0.66, 0.74])
    mean = accuracy(outcomes, "mmca", 100)
    assert (mean.value, mean.n) == (pytest.approx(0.7), 3)
    assert mean.half == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert accuracy(outcomes, "mmca", 100, "which").value == pytest.approx(0.35)
    assert accuracy(outcomes, "cross", 100) is None
    ahead = lead(outcomes, "mmca", "causal", 100)  # 5, 4 and 6 points: pairs are more certain than means
    assert ahead.value == pytest.approx(0.05) and ahead.half == pytest.approx(4.303 * 0.01 / 3**0.5)
    assert ahead.is_certain and not Mean.of([0.1]).is_certain
    assert lead(outcomes, "mmca", "cross", 100) is None


@pytest.mark.parametrize(
    ("right", "sentence"),
    [
        (
            {"mmca": [0.60, 0.70, 0.80], "causal": [0.55, 0.66, 0.74]},
            "mmca answers 5.0 points more right than causal (± 2.5, 3 seeds in pairs)",
        ),
        ({"mmca": [0.50, 0.71], "causal": [0.60, 0.70]}, "no certain difference between mmca and causal"),
        (
            {"mmca": [0.50, 0.60, 0.70], "cross": [0.60, 0.70, 0.81]},
            "cross answers 10.3 points more right than mmca",
        ),
        ({"mmca": [0.5], "causal": [0.6]}, "10.0 points apart in the one seed there is"),
    ],
)
def test_what_is_said_is_what_came_out(right: dict[str, list[float]], sentence: str) -> None:
    [said] = verdicts(results(**right))
    assert said.startswith("100 records: ") and sentence in said


def test_the_table_and_the_picture_take_grids_that_are_not_finished(tmp_path: Path) -> None:
    outcomes = [*results(mmca=[0.6, 0.7], causal=[0.5]), outcome(Cell(200, 0, "mmca"), 0.9, steps=18)]
    assert accuracy_table(outcomes) == [
        ("records", "mmca", "causal", "mmca less causal"),
        ("100", "65.0 ± 63.5 %", "50.0 %", "+10.0 %"),
        ("200", "90.0 %", "-", "-"),
    ]
    draw(outcomes, tmp_path / "images" / "comparison.png")
    with PIL.Image.open(tmp_path / "images" / "comparison.png") as picture:
        assert picture.size == (1080, 660)
    text = page(outcomes, {"LR": "8e-3", "digest of assets/": "0"}, "images/comparison.png")
    assert "![Accuracy against training records](images/comparison.png)" in text and "lr 8e-3." in text
    assert "Steps of the optimizer: 9 after 100 records, 18 after 200 records." in text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("comparison") / "world"
    write_world(root, WorldSize(descriptions=4, reasoning=16, conversations=40, eval_dialogues=4), 5)
    return root


def test_records_are_shared_out_as_the_world_has_them(world: Path) -> None:
    assert shared_out(60, world) == (20, 40) and shared_out(30, world) == (10, 20)
    with pytest.raises(ComparisonError, match="has 60 records"):
        shared_out(61, world)


def test_settings_are_the_scripts_values_and_the_environments(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LEARNING:
        monkeypatch.delenv(name, raising=False)
    settings = settings_of(world)
    assert (
        settings["LR"] == "3e-4" and settings["DATASETS"] == "llava llava_dial"
    )  # run_tiny.sh's, not launch.sh's
    assert settings["DATASET_CONCAT"] == "3 1"  # which it sets only beside its own datasets
    monkeypatch.setenv("LR", "1e-3")
    changed = settings_of(world)
    assert {name for name in settings if settings[name] != changed[name]} == {"LR"}
    monkeypatch.setenv("DATASETS", "llava")
    assert settings_of(world)["DATASET_CONCAT"] == "1"


def test_an_interrupted_comparison_goes_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth training fails; run again, the three before it are not trained again."""
    trained = []

    def train(cell: Cell, data: Path, folder: Path) -> Outcome:
        trained.append(cell)
        if len(trained) == 4:
            raise ComparisonError(f"{cell} failed")
        return outcome(cell, 0.5 + 0.01 * cell.seed)

    monkeypatch.setattr(helper.compare, "train_and_score", train)
    words = ["--samples", "20", "40", "--seeds", "1", "--data", str(world), "--output", str(tmp_path / "out")]
    words += ["--docs", str(tmp_path / "docs")]
    assert helper.compare.main(words) == 1 and not (tmp_path / "docs").exists()
    assert helper.compare.main(words) == 0
    assert len(trained) == 7 and len(set(trained)) == 6
    assert "| 40 | 51.0 % |" in (tmp_path / "docs" / "comparison.md").read_text()
    assert helper.compare.main([*words, "--attentions", "mmca"]) == 0 and len(trained) == 7


@pytest.mark.long
def test_a_cell_goes_through_the_whole_pipeline(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NUM_GPUS": "1", "GLOBAL_BATCH": "8", "BATCH": "8", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path / "cache"))
    words = ["--attentions", "cross", "--samples", "60", "--seeds", "7", "--data", str(world)]
    assert helper.compare.main([*words, "--output", str(tmp_path), "--docs", str(tmp_path / "docs")]) == 0
    [row] = json.loads((tmp_path / "outcomes.json").read_text())["outcomes"]
    assert row["cell"] == {"samples": 60, "seed": 7, "attention": "cross"}
    assert 0 <= row["accuracy"] <= 1 and row["questions"] == 32 and row["steps"] >= 2
    folder = tmp_path / "cross-60-7"
    assert {"log.txt", "summary.md", "curves.png", "evaluation.json"} <= set(os.listdir(folder))
    assert not (folder / "final").exists()
    assert "attention: cross" in (folder / "log.txt").read_text()
