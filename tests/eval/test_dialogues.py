"""Reading evaluation sets: the 2023 format, its extensions, and mistakes in it."""

import json
from pathlib import Path

import pytest

from eval.dialogues import EvalDataError, EvalTurn, load_dialogues
from utils.conversation import Image


def test_all_forms_of_a_turn(mixed_set, pictures):
    dialogues = {dialogue.name: dialogue for dialogue in load_dialogues(mixed_set)}
    assert list(dialogues) == ["one", "none", "several", "late", "plain"]
    first = Image(pictures[0], "picture 0.png")
    assert dialogues["one"].turns == (
        EvalTurn("What is it?", "'picture 0.png'", (first,), ("red",), "colour"),
        EvalTurn("And?"),
        EvalTurn("Why?", "", (), ("two", "2"), "count"),
    )
    assert [image.source.name for image in dialogues["several"].turns[0].images] == [
        "picture 0.png",
        "picture 1.png",
    ]
    assert dialogues["several"].turns[1].reference == "blue"
    assert dialogues["several"].images == 3
    assert dialogues["plain"].turns[0] == EvalTurn("Just a question?")


def test_images_are_found_beside_the_file_in_its_image_folder_or_from_the_working_directory(
    tmp_path, pictures, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "image").mkdir(parents=True)
    pictures[0].rename(elsewhere / "image" / "a.png")
    pictures[1].rename(elsewhere / "b.png")
    pictures[2].rename(tmp_path / "c.png")
    file = elsewhere / "set.json"
    file.write_text(json.dumps({"x": [["q", "a.png b.png image/a.png c.png"]]}))
    monkeypatch.chdir(tmp_path)
    assert all(Path(image.source).is_file() for image in load_dialogues(file)[0].turns[0].images)
    with pytest.raises(EvalDataError, match=r"'b.png' in .*image.*--image_folder"):
        load_dialogues(file, image_folder=elsewhere / "image")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected an object of dialogues by name, found list"),
        ("{}", "expected an object"),
        ('{"x": []}', "'x': expected a list of turns"),
        ('{"x": [["q"], [""]]}', "'x', turn 2: the question is missing"),
        ('{"x": [["q", "nowhere.png"]]}', "'x', turn 1: there is no image 'nowhere.png'"),
        ('{"x": [["q", "\'a.png"]]}', "No closing quotation"),
        ('{"x": [["q", 7]]}', "turn 1: "),
        ('{"x": [["q", "", 7]]}', "answer must be a text or a list of texts"),
        ('{"x": [["q", "", "a", "k", 5]]}', "expected .question, images, answer, kind., found"),
        ('{"x": [{"question": "q", "image": "a.png"}]}', "unknown key 'image'"),
    ],
)
def test_mistakes_are_named(tmp_path, content, message):
    file = tmp_path / "set.json"
    file.write_text(content)
    with pytest.raises(EvalDataError, match=message):
        load_dialogues(file)


def test_too_many_images_and_unknown_sets(mixed_set):
    with pytest.raises(EvalDataError, match="'several': 3 images, of 2 allowed"):
        load_dialogues(mixed_set, max_images=2)
    with pytest.raises(EvalDataError, match="eval_comprehensive, eval_robustness, eval_single"):
        load_dialogues("eval_nothing")
