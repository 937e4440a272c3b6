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
    held_out: bool = False,
    bos: str = "<s>",
    eos: str = "</s>",
) -> WrittenText:
    """A caption and short questions about it, each answered at once: a dialogue without its trappings."""
    scene = sample_scene(rng, held_out=held_out, things=things)
    text, spans = f"{bos}{scene.in_words()}.", []
    for turn in make_dialogue(rng, [scene], rounds, kinds=SINGLE_IMAGE_KINDS):
        text += " " + turn.question.replace(" in image 1?", "?").replace(" of image 1?", "?")
        spans.append((len(text), len(text) + len(turn.answer) + 1, turn.kind))
        text += f" {turn.answer}."
    return WrittenText(text + eos, tuple(spans))


def list_said_twice(
    rng: np.random.Generator,
    things: int,
    words: int = 3,
    *,
    shuffled: bool = True,
    bos: str = "<s>",
    eos: str = "</s>",
) -> WrittenText:
    """Two to `things` things that differ in everything, then the same again, things and their words in another order.

    When a thing is said again, its last word follows from the first list: the shortest text that asks a decoder to bind
    colour, shape and place together. Those last words are the spans to learn. With `words` 2 there is no place; unless
    `shuffled`, a thing's words keep their order.
    """
    count = int(rng.integers(2, things + 1))
    kinds = (list(COLORS), SHAPES, POSITIONS)[:words]
    listed = list(
        zip(*([kind[i] for i in rng.permutation(len(kind))[:count]] for kind in kinds), strict=True)
    )
    text, spans = bos, []
    for again in (False, True):
        for place, index in enumerate(rng.permutation(count)):
            order = rng.permutation(len(kinds)) if shuffled else range(len(kinds))
            *first, last = [listed[index][kind] for kind in order]
            text += ("," if place else "") + (" " if place or again else "") + " ".join(first)
            if again:
                spans.append((len(text), len(text) + 1 + len(last), "list"))
            text += f" {last}"
        text += eos if again else "."
    return WrittenText(text, tuple(spans))
