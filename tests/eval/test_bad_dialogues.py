"""What is wrong with some dialogues is known before the model is loaded, and costs the others nothing."""

import csv
import json
import re
from pathlib import Path

import pytest

from eval import batch_generation
from utils.model import checkpoint as loading

FLAGS = ["--device_map", "cpu", "--max_new_tokens", "4"]
TOO_LONG = "word " * 3_600


@pytest.fixture
def half_bad(pictures: list[Path]) -> Path:
    """A set of which every other dialogue cannot be asked."""
    folder = pictures[0].parent
    pictures[1].write_bytes(pictures[1].read_bytes()[:-300])
    (folder / "turned.jpg").write_text("<html>404</html>")
    content = {
        "first": [["What is it?", f"'{pictures[0].name}'", "red"]],
        "damaged": [["What is it?", f"'{pictures[1].name}'", "red"], ["And?"]],
        "second": [["What is it?", f"'{pictures[2].name}'", "blue"]],
        "a page": [["Hello?"], ["What is it?", "turned.jpg"]],
        "missing": [["What is it?", "nowhere.png"]],
        "reserved": [["Hello?"], ["What does </s> mean?"]],
        "half": [["What \ud83d?"]],
        "half a reference": [["What?", "", "\ud83d"]],
        "empty": [[" "]],
        "long": [[TOO_LONG]],
        "third": [["Hello?"], ["And now?"]],
    }
    file = folder / "half.json"
    file.write_text(json.dumps(content))
    return file


REASONS = {
    "missing": "turn 1: there is no image 'nowhere.png'",
    "empty": "turn 1: the question is missing",
    "damaged": "the image is damaged",
    "a page": "turned.jpg: not an image.*a web page",
    "reserved": "contains '</s>'",
    "half": "half a character",
    "half a reference": "half a character",
    "long": r"its first question takes [0-9,]+ tokens and leaves no room for an answer within 2,048",
}


def run(*arguments: object) -> int:
    return batch_generation.main([*map(str, arguments), *FLAGS])


def test_the_others_are_answered(checkpoint: Path, half_bad: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "results" / "half"
    where = ("--checkpoint_path", checkpoint, "--output_filename", output, "--eval_data")
    for _ in range(2):  # given again, it ends the same way
        assert run(*where, half_bad) == batch_generation.LEFT_OUT == 3
        with output.with_suffix(".csv").open(newline="") as table:
            rows = list(csv.DictReader(table))
        assert [row["test_name"] for row in rows] == ["first", "second", "third", "third"]
        assert all(row["answer"] for row in rows)
    content = json.loads(output.with_suffix(".json").read_text())
    assert content["overall"]["count"] == 2 and content["settings"]["left_out"] == len(REASONS)
    listed = output.with_name("half.bad_dialogues.jsonl")
    bad = {entry["dialogue"]: entry["reason"] for entry in map(json.loads, listed.read_text().splitlines())}
    assert list(bad) == list(REASONS)
    for name, reason in REASONS.items():
        assert len(bad[name]) < 500
        assert re.search(reason, bad[name]), (name, bad[name])
    said = capsys.readouterr()
    assert f"8 of 11 dialogues cannot be asked, listed in {listed}: 'missing': turn 1" in said.err
    assert f"8 dialogues were left out: {listed}" in said.out

    half_bad.write_text(json.dumps({"first": ["Hello?"]}))
    assert run(*where, half_bad) == 0
    assert not listed.exists()


def test_nothing_is_loaded_where_no_dialogue_is_left(checkpoint, tmp_path, monkeypatch, capsys) -> None:
    def never(*arguments: object, **settings: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", never)
    (tmp_path / "set.json").write_text(json.dumps({"a": ["What is </s>?"], "b": [["q", "nowhere.png"]]}))
    arguments = ("--checkpoint_path", checkpoint, "--output_filename", tmp_path / "out")
    assert run(*arguments, "--eval_data", tmp_path / "set.json") == 2
    said = capsys.readouterr().err
    assert "2 of 2 dialogues cannot be asked" in said and "'a': the text of a user contains '</s>'" in said
    assert (tmp_path / "out.bad_dialogues.jsonl").read_text().count("\n") == 2


def test_a_history_of_references_that_lacks_one_stops_before_the_model(checkpoint, tmp_path, capsys) -> None:
    (tmp_path / "set.json").write_text(json.dumps({"a": ["Hello?", "And?"]}))
    arguments = ("--checkpoint_path", checkpoint, "--output_filename", tmp_path / "out")
    assert run(*arguments, "--eval_data", tmp_path / "set.json", "--history", "reference") == 2
    assert "'a', turn 1: there is no reference answer" in capsys.readouterr().err
