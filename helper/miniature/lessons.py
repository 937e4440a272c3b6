"""What the miniature decoder is taught, one lesson after the other: from pairs of words to dialogues over captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from helper.miniature.words import WrittenText, dialogue_in_words, pairs_said_twice, quiz

Draw = Callable[[np.random.Generator, bool], WrittenText]
"""Draws a text with a generator, about scenes of the held-out side or of the other."""


@dataclass(frozen=True)
class Lesson:
    """Texts of one kind, about `tokens` tokens of them a step, at `rate` times the recipe's learning rates.

    It is over when `mastered` of the answers are right (a running mean), at the latest after `steps`.
    """

    name: str
    draw: Draw
    steps: int
    mastered: float
    tokens: int = 1000
    rate: float = 1.0


def _pairs(things: int) -> Draw:
    return lambda rng, held_out: pairs_said_twice(rng, things)


def _quiz(as_dialogue: bool) -> Draw:
    return lambda rng, held_out: quiz(rng, things=4, rounds=8, as_dialogue=as_dialogue, held_out=held_out)


def _dialogues(images: int) -> Draw:
    """Over one to `images` captions; most dialogues number them, half of all name them before the caption."""

    def draw(rng: np.random.Generator, held_out: bool) -> WrittenText:
        return dialogue_in_words(
            rng,
            images=int(rng.integers(1, images + 1)),
            rounds=8,
            held_out=held_out,
            numbered=rng.random() < 0.9,
            name_first=rng.random() < 0.5,
        )

    return draw


FULL_DIALOGUES = Lesson(
    "dialogues over up to 3 captions", _dialogues(3), steps=700, mastered=2.0, tokens=12000
)

LESSONS = (
    Lesson("two pairs said twice", _pairs(2), steps=600, mastered=0.96, tokens=2500),
    Lesson("up to four pairs said twice", _pairs(4), steps=600, mastered=0.95, tokens=2500),
    Lesson("quiz about a caption", _quiz(False), steps=600, mastered=0.95, tokens=6000),
    Lesson("quiz in the form of a dialogue", _quiz(True), steps=600, mastered=0.95, tokens=8000),
    Lesson("dialogues over a caption", _dialogues(1), steps=600, mastered=0.96, tokens=8000),
    Lesson("dialogues over up to 2 captions", _dialogues(2), steps=600, mastered=0.95, tokens=10000),
    FULL_DIALOGUES,
)
