"""Dialogues in words: what the miniature decoder reads in its pretraining, where captions stand in for pictures.

The decoder must learn from words alone what a real one brings along: who said what, which caption bears which number,
and how colour, shape and place belong together. It sees captions both after their name ("### Image 2: ...") and before
it ("... ### Image 2"), since people write either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helper.miniature.dialogues import DESCRIPTION, KINDS, SINGLE_IMAGE_KINDS, Round, make_dialogue
from helper.miniature.scenes import COLORS, POSITIONS, SHAPES, sample_scene
from utils.model.chat_template import DEFAULT_SYSTEM

_IN_IMAGE_1, _OF_IMAGE_1 = " in image 1?", " of image 1?"


@dataclass(frozen=True)
class WrittenText:
    """A text as one string; `answers` are the (begin, end, kind) character spans to learn, end token included."""

    text: str
    answers: tuple[tuple[int, int, str], ...]


def dialogue_in_words(
    rng: np.random.Generator,
    *,
    images: int,
    rounds: int,
    things: int = 4,
    held_out: bool = False,
    numbered: bool = True,
    name_first: bool = True,
    bos: str = "<s>",
    eos: str = "</s>",
) -> WrittenText:
    """Draws scenes and a dialogue about them, and writes both down."""
    scenes = [sample_scene(rng, held_out=held_out, things=things) for _ in range(images)]
    dialogue = make_dialogue(rng, scenes, rounds, numbered=numbered, kinds=(*KINDS, DESCRIPTION))
    return _write(dialogue, name_first, bos, eos)


def _write(dialogue: list[Round], name_first: bool, bos: str, eos: str) -> WrittenText:
    text, spans, images = f"{bos}{DEFAULT_SYSTEM}", [], 0
    for turn in dialogue:
        text += "\n\n"
        for scene in turn.new_scenes:
            images += 1
            words = scene.in_words()
            text += f"### Image {images}: {words}\n" if name_first else f"### {words}\n### Image {images}:\n"
        text += f"### Question: {turn.question}\n### Answer:"
        begin = len(text)
        text += f" {turn.answer}{eos}"
        spans.append((begin, len(text), turn.kind))
    return WrittenText(text, tuple(spans))


def quiz(
    rng: np.random.Generator,
    things: int,
    rounds: int,
    *,
    as_dialogue: bool = False,
    held_out: bool = False,
    bos: str = "<s>",
    eos: str = "</s>",
) -> WrittenText:
    """A caption and short questions about it, each answered at once, or in the form of a dialogue."""
    scene = sample_scene(rng, held_out=held_out, things=things)
    if as_dialogue:
        text, ask, reply, end = (
            f"{bos}{DEFAULT_SYSTEM}\n\n### Image 1: {scene.in_words()}",
            "### Question:",
            "\n### Answer:",
            eos,
        )
    else:
        text, ask, reply, end = f"{bos} {scene.in_words()}.", "", "", "."
    spans = []
    for number, turn in enumerate(make_dialogue(rng, [scene], rounds, kinds=SINGLE_IMAGE_KINDS)):
        text += ("\n\n" if number else "\n") if as_dialogue else ""
        text += f"{ask} {turn.question.replace(_OF_IMAGE_1, '?').replace(_IN_IMAGE_1, '?')}{reply}"
        spans.append((len(text), len(text) + 1 + len(turn.answer) + len(end), turn.kind))
        text += f" {turn.answer}{end}"
    return WrittenText(text, tuple(spans))


def pairs_said_twice(
    rng: np.random.Generator, things: int, *, bos: str = "<s>", eos: str = "</s>"
) -> WrittenText:
    """Two to `things` pairs of a colour, form or place with another, then the same again, all orders drawn anew.

    When a pair is said again, its second word follows from the first list: the shortest text that asks a decoder to
    bind words to each other. Those second words are the spans to learn.
    """
    count = int(rng.integers(2, things + 1))
    kinds = (list(COLORS), SHAPES, POSITIONS)
    first, second = (kinds[index] for index in rng.permutation(len(kinds))[:2])
    pairs = [
        (first[one], second[other])
        for one, other in zip(
            rng.permutation(len(first))[:count], rng.permutation(len(second))[:count], strict=True
        )
    ]
    text, spans = bos, []
    for again in (False, True):
        for place, index in enumerate(rng.permutation(count)):
            known, asked = (pairs[index][side] for side in rng.permutation(2))
            text += ("," if place else "") + f" {known}"
            if again:
                spans.append((len(text), len(text) + 1 + len(asked), "pair"))
            text += f" {asked}"
        text += eos if again else "."
    return WrittenText(text, tuple(spans))
