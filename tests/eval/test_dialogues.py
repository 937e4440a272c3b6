"""Reading evaluation sets: the 2023 format, its extensions, and mistakes in it."""

import json
from pathlib import Path

import pytest

from eval.dialogues import BadDialogue, EvalDataError, EvalTurn, load_dialogues, read_set
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
        ("{", "set.json is damaged at byte 1 .line 1.*write it again"),
        ("[]", "set.json: it contains no dialogue"),
        ("{}", "expected an object of dialogues by name, found an empty one"),
        ("", "set.json is empty"),
        ("null", "expected a list of records"),
        ('{"x": ["q"]} {}', "something follows"),
        ('{"x": []}', "'x': expected a list of turns"),
        ('{"x": [["q"], [""]]}', "'x': turn 2: the question is missing"),
        ('{"x": [["q", "nowhere.png"]]}', "'x': turn 1: there is no image 'nowhere.png'"),
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


def test_bad_dialogues_cost_the_others_nothing(tmp_path, pictures):
    file = tmp_path / "set.json"
    dialogues = ['"a": ["q"]', '"b": 7', '"a": [["r"]]', '"c": [["q", "no.png"]]', '"a": ["s"]']
    dialogues += ['"a (2)": ["t"]', '"d": [{"question": "q", "question": "r"}]']
    file.write_bytes(b"\xef\xbb\xbf{" + ", ".join(dialogues).encode() + b"}")  # a byte order mark
    found = read_set(file)
    assert [(each.name, each.turns[0].question) for each in found.dialogues] == [
        ("a", "q"),
        ("a (2)", "r"),
        ("a (3)", "s"),
        ("a (2) (2)", "t"),
    ]
    assert [each.dialogue for each in found.bad] == ["b", "c", "d"]
    assert found.bad[0] == BadDialogue("b", "expected a list of turns, found 7")
    assert "twice" in found.bad[2].reason and "no.png" in found.bad[1].reason
    with pytest.raises(EvalDataError, match=r"set\.json: 'b': expected a list of turns, found 7"):
        load_dialogues(file)


def test_what_messages_quote_is_short(tmp_path):
    file = tmp_path / "set.json"
    file.write_text(json.dumps({"x": [["q", "a" * 100_000]], "y": "z" * 100_000}))
    assert all(len(each.reason) < 1_200 for each in read_set(file).bad)


def test_an_image_folder_that_is_not_there_is_named(mixed_set):
    with pytest.raises(EvalDataError, match="--image_folder nowhere: there is no such folder"):
        read_set(mixed_set, image_folder="nowhere")
