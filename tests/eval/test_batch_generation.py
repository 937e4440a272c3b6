"""The command: files it writes, and what it says to mistakes."""

import csv
import json

import pytest

from eval import batch_generation

FLAGS = ["--device_map", "cpu", "--max_new_tokens", "5", "--batch_size", "4"]


def run(*arguments) -> int:
    return batch_generation.main([*map(str, arguments), *FLAGS])


def read(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_set_with_references(checkpoint, mixed_set, tmp_path, capsys):
    output = tmp_path / "results" / "mixed"
    assert run("--checkpoint_path", checkpoint, "--eval_data", mixed_set, "--output_filename", output) == 0
    rows = read(output.with_suffix(".csv"))
    assert list(rows[0]) == ["test_name", "image_path", "question", "answer", "reference", "kind", "correct"]
    assert [row["test_name"] for row in rows].count("late") == 4 and len(rows) == 12
    assert rows[0]["image_path"] == "'picture 0.png'" and rows[1]["image_path"] == ""
    assert {row["correct"] for row in rows if row["reference"]} <= {"0", "1"}
    assert {row["correct"] for row in rows if not row["reference"]} == {""}
    scores = json.loads(output.with_suffix(".json").read_text())
    assert scores["overall"]["count"] == 4 and set(scores["kinds"]) == {"colour", "count"}
    assert scores["kinds"]["colour"]["majority_answer"] == "red"
    assert scores["kinds"]["colour"]["majority"] == 2
    assert scores["settings"]["checkpoint"] == str(checkpoint)
    assert [answer["images_so_far"] for answer in scores["answers"]][:3] == [1, 1, 1]
    assert scores["answers"][0]["images"] == [str(mixed_set.parent / "picture 0.png")]
    assert not output.with_name("mixed.parts").exists()
    shown = capsys.readouterr().out
    assert "overall" in shown and "majority" in shown and str(output) in shown.replace("\n", "")


def test_a_set_of_2023_by_name_for_two_checkpoints(checkpoint, tmp_path, monkeypatch):
    for name in ("epoch-0", "epoch-1"):
        (tmp_path / name).symlink_to(checkpoint)
    flags = ["--checkpoint_names", "epoch-0", "epoch-1", "--eval_data", "eval_robustness", "--seed", "123"]
    assert run("--checkpoint_path", tmp_path, *flags, "--output_filename", tmp_path / "out.csv") == 0
    first, second = read(tmp_path / "out_epoch-0.csv"), read(tmp_path / "out_epoch-1.csv")
    assert first == second and len(first) == 34
    assert list(first[0]) == ["test_name", "image_path", "question", "answer"]
    assert "overall" not in json.loads((tmp_path / "out_epoch-0.json").read_text())
    image_paths = [row["image_path"] for row in first if row["test_name"] == "the same picture twice"]
    assert image_paths == ["image/kitchen.png", "image/kitchen.png", "", "image/beach.png"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--checkpoint_path", "nowhere"], "there is no checkpoint folder nowhere"),
        (["--checkpoint_path", "nowhere", "--eval_data", "none"], "there is no evaluation set 'none'"),
        (["--checkpoint_path", "nowhere", "--max_images", "2", "--eval_data", "eval_single"], "nowhere"),
        (["--checkpoint_path", "nowhere", "--temperature", "-1"], "temperature is -1"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
