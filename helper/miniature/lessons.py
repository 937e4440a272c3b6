"""What the miniature decoder is taught, one lesson after the other: from a caption and keys to dialogues over several.

The captions are read as pictures are. A picture's tokens see nothing but themselves under multi-modal causal attention,
so they do not know their number, which has to be learnt from the words around them; and each says several things at
once. What a decoder of billions brings along, this one is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from helper.miniature.words import WrittenText, dialogue_in_words, quiz

Draw = Callable[[np.random.Generator, bool], WrittenText]
"""Draws a text with a generator, about scenes of the held-out side or of the other."""


@dataclass(frozen=True)
class Lesson:
    """Texts of one kind, about `tokens` tokens of them a step, at `rate` times the recipe's learning rates.

    It is over when `mastered` of the answers are right (a running mean), at the latest after `steps`. In a share of
    `summed` of its texts a caption is what an encoder makes of a picture: a token for the whole and one for each
    quarter, each the sum of its words and some noise, and read as multi-modal causal attention reads pictures.
    """

    name: str
    draw: Draw
    steps: int
    mastered: float
    tokens: int
    rate: float = 1.0
    summed: float = 1.0


def _quiz(form: Literal["keys", "questions"], images: int = 1, things: int = 4) -> Draw:
    return lambda rng, held_out: quiz(rng, form, images=images, things=things, held_out=held_out)


def _keys(
    name: str, images: int, things: int, mastered: float, tokens: int = 4000, rate: float = 1.0
) -> Lesson:
    """Little to read, and so much to ask."""
    draw = _quiz("keys", images, things)
    return Lesson(name, draw, steps=800, mastered=mastered, tokens=tokens, rate=rate)


def _dialogues(least: int, most: int) -> Draw:
    """Over `least` to `most` captions, mostly many, which are harder."""

    def draw(rng: np.random.Generator, held_out: bool) -> WrittenText:
        return dialogue_in_words(
            rng,
            images=int(rng.integers(least, most + 1, size=2).max()),
            rounds=8,
            held_out=held_out,
            numbered=rng.random() < 0.9,
        )

    return draw


FULL_DIALOGUES = Lesson(
    "dialogues over up to 3 captions", _dialogues(1, 3), steps=1300, mastered=2.0, tokens=6000, rate=0.8
)
"""The last lesson, and what a finished decoder is measured by."""

LESSONS = (
    _keys("a caption of up to two things, and keys", 1, 2, mastered=0.95, tokens=2500),
    _keys("a caption, and keys", 1, 4, mastered=0.95, tokens=2500),
    _keys("two captions of a thing, and keys", 2, 1, mastered=0.95),
    _keys("three captions of a thing, and keys", 3, 1, mastered=0.95),
    _keys("three captions of up to two things, and keys", 3, 2, mastered=0.93),
    _keys("three captions, and keys", 3, 4, mastered=0.93, rate=0.5),
    Lesson("three captions, and questions", _quiz("questions", 3), 400, 0.95, 5000, 0.5),
    FULL_DIALOGUES,
)
