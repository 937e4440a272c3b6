"""The miniature world: its questions have one right answer each, and its held-out scenes are never trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helper.make_tiny_world import main as make_world
from helper.miniature.dialogues import KINDS, SINGLE_IMAGE_KINDS, make_dialogue
from helper.miniature.scenes import COLORS, PICTURE_SIZE, Scene, Thing, draw, random_scene, sample_scene

RED_AND_BLUE = Scene((Thing(0, "red", "circle"), Thing(3, "blue", "square")))
ONE_CROSS = Scene((Thing(1, "green", "cross"),))


def answers_to(scenes: list[Scene], seeds: int = 400, **options) -> dict[str, set[str]]:
    """Every question asked about `scenes` over many seeds, with all the answers it was given."""
    answers: dict[str, set[str]] = {}
    for seed in range(seeds):
        for turn in make_dialogue(np.random.default_rng(seed), scenes, 6, **options):
            answers.setdefault(turn.question, set()).add(turn.answer)
    return answers


def test_scene_in_words() -> None:
    assert RED_AND_BLUE.in_words() == "two objects: red circle northwest, blue square southeast"
    assert ONE_CROSS.in_words() == "one object: green cross northeast"


def test_answers_worked_out_by_hand() -> None:
    answers = answers_to([RED_AND_BLUE, ONE_CROSS])
    expected = {
        "what color is the circle in image 1?": "red",
        "what shape is in the southeast of image 1?": "square",
        "where is the blue square in image 1?": "southeast",
        "how many objects are in image 1?": "two",
        "how many objects are in image 2?": "one",
        "is there a red circle in image 1?": "yes",
        "is there a red square in image 1?": "no",
        "which image has a green cross?": "image 2",
        "which has more objects, image 1 or image 2?": "image 1",
    }
    for question, answer in expected.items():
        assert answers[question] == {answer}, question


def test_no_question_has_two_answers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        answers = answers_to([random_scene(rng) for _ in range(3)], seeds=30)
        # What can be asked of "which image" depends on the pictures shown so far; the rest never changes.
        several = {q for q, given in answers.items() if len(given) > 1 and not q.startswith("which image")}
        assert not several


def test_two_of_a_kind_are_never_asked_for_as_the_one() -> None:
    twins = Scene((Thing(0, "red", "circle"), Thing(1, "green", "circle")))
    assert "what color is the circle in image 1?" not in answers_to([twins])


def test_every_kind_is_asked_and_pictures_appear_in_order() -> None:
    rng = np.random.default_rng(3)
    kinds = set()
    for _ in range(50):
        scenes = [random_scene(rng) for _ in range(3)]
        dialogue = make_dialogue(rng, scenes, 8)
        shown = [scene for turn in dialogue for scene in turn.new_scenes]
        assert shown == scenes
        assert dialogue[0].new_scenes
        kinds |= {turn.kind for turn in dialogue}
        seen = 0
        for turn in dialogue:
            seen += len(turn.new_scenes)
            assert all(int(number) <= seen for number in re.findall(r"image (\d)", turn.question))
    assert kinds == set(KINDS)


def test_unnumbered_questions_are_about_the_newest_picture() -> None:
    for turn in make_dialogue(np.random.default_rng(0), [ONE_CROSS], 10, numbered=False):
        assert turn.kind in SINGLE_IMAGE_KINDS
        assert "the image" in turn.question


def test_drawn_things_are_where_the_scene_says() -> None:
    rng = np.random.default_rng(0)
    half = PICTURE_SIZE // 2
    for color, rgb in COLORS.items():
        for position in range(4):
            picture = np.asarray(draw(Scene((Thing(position, color, "square"),)), rng)).astype(float)
            distance = np.abs(picture - np.array(rgb)).sum(-1)
            y, x = np.unravel_index(distance.argmin(), distance.shape)
            assert (x // half, y // half) == (position % 2, position // 2)


def test_held_out_is_a_property_of_the_scene() -> None:
    rng = np.random.default_rng(0)
    train = {sample_scene(rng, held_out=False) for _ in range(500)}
    kept = {sample_scene(rng, held_out=True) for _ in range(500)}
    assert not train & kept
    share = np.mean([random_scene(rng).held_out for _ in range(2000)])
    assert share == pytest.approx(1 / 8, abs=0.03)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    small = ["--descriptions", "3", "--reasoning", "4", "--conversations", "5", "--eval_dialogues", "4"]
    make_world(["--output", str(tmp_path / "world"), *small])
    return tmp_path / "world"


def test_world_has_the_published_layout(world: Path) -> None:
    described = json.loads((world / "llava/detail_23k.json").read_text())
    assert len(described) == 3
    assert described[0]["conversations"][0] == {"from": "human", "value": "<image>\ndescribe the image."}
    talks = json.loads((world / "llava/conversation_58k.json").read_text())
    for record in talks:
        names = record["image"] if isinstance(record["image"], list) else [record["image"]]
        tags = sum(turn["value"].count("<image>") for turn in record["conversations"])
        assert tags == len(names)
        for name in names:
            with Image.open(world / "coco/train2017" / name) as picture:
                assert picture.size == (PICTURE_SIZE, PICTURE_SIZE)


def test_evaluation_has_several_pictures_and_references(world: Path) -> None:
    dialogues = json.loads((world / "eval/miniature.json").read_text())
    assert len(dialogues) == 4
    for rounds in dialogues.values():
        pictures = [name for _, names, _, _ in rounds for name in names.split()]
        assert len(pictures) >= 2
        assert all((world / "eval" / name).exists() for name in pictures)
        assert all(answer and kind in KINDS for _, _, answer, kind in rounds)


def test_world_is_kept_when_it_is_the_same_and_never_overwrites_strangers(
    world: Path, tmp_path, capsys
) -> None:
    small = ["--descriptions", "3", "--reasoning", "4", "--conversations", "5", "--eval_dialogues", "4"]
    make_world(["--output", str(world), *small])
    assert "kept" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert make_world(["--output", str(tmp_path / "mine"), *small]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").exists()
