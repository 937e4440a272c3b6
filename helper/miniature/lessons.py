"""What the miniature decoder is taught, one lesson after the other: from pairs of words to dialogues over captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from helper.miniature.words import WrittenText, dialogue_in_words, numbered_words, pairs_said_twice, quiz

SUMMED = 0.85
"""The share of texts over several captions that are read as pictures are.

A picture's tokens see nothing but themselves under multi-modal causal attention, so they do not know their number,
which has to be learnt from the words around them; and each says several things at once. What a decoder of billions
brings along, this one is shown. In the rest of the texts it reads words, one after the other, with plain causal
attention.
"""

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
    summed: float = 0.0


def _pairs(things: int) -> Draw:
    return lambda rng, held_out: pairs_said_twice(rng, things)


def _numbered(rng: np.random.Generator, held_out: bool) -> WrittenText:
    return numbered_words(rng, images=int(rng.integers(2, 4)), rounds=8)


def _quiz(form: Literal["keys", "questions", "dialogue"], images: int = 1, things: int = 4) -> Draw:
    return lambda rng, held_out: quiz(rng, form, images=images, things=things, held_out=held_out)


def _keys(name: str, images: int, things: int, mastered: float, tokens: int = 4000) -> Lesson:
    """All in sums: little to read, and so much to ask."""
    draw = _quiz("keys", images, things)
    return Lesson(name, draw, steps=1500, mastered=mastered, tokens=tokens, summed=1.0)


def _dialogues(least: int, most: int, name_first: float = 1.0) -> Draw:
    """Over `least` to `most` captions, mostly many, which are harder.

    A share of `name_first` names them before the caption, the rest after it.
    """

    def draw(rng: np.random.Generator, held_out: bool) -> WrittenText:
        return dialogue_in_words(
            rng,
            images=int(rng.integers(least, most + 1, size=2).max()),
            rounds=8,
            held_out=held_out,
            numbered=rng.random() < 0.9,
            name_first=rng.random() < name_first,
        )

    return draw


FULL_DIALOGUES = Lesson(
    "dialogues over up to 3 captions",
    _dialogues(1, 3),
    steps=2000,
    mastered=2.0,
    tokens=8000,
    rate=0.7,
    summed=SUMMED,
)

IN_WORDS = replace(FULL_DIALOGUES, tokens=10000, summed=0.0)
"""The same, every word a token: what a finished decoder is measured by."""

LESSONS = (
    _keys("a caption of up to two things, and keys", 1, 2, mastered=0.95, tokens=2500),
    _keys("a caption, and keys", 1, 4, mastered=0.95, tokens=2500),
    _keys("two captions of a thing, and keys", 2, 1, mastered=0.95),
    _keys("three captions of a thing, and keys", 3, 1, mastered=0.95),
    _keys("three captions of up to two things, and keys", 3, 2, mastered=0.93),
    _keys("three captions, and keys", 3, 4, mastered=0.93),
    Lesson("three captions, and questions", _quiz("questions", 3), 800, 0.95, 5000, summed=SUMMED),
    Lesson("three captions, and a dialogue", _quiz("dialogue", 3), 800, 0.95, 6000, 0.7, summed=SUMMED),
    FULL_DIALOGUES,
)
