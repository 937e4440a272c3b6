"""What the miniature decoder is taught, one lesson after the other: from pairs of words to dialogues over captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from helper.miniature.words import WrittenText, dialogue_in_words, numbered_words, pairs_said_twice, quiz

SUMMED = 0.7
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


def _dialogues(least: int, most: int, name_first: float = 1.0) -> Draw:
    """Over `least` to `most` captions; a share of `name_first` names them before the caption, the rest after it."""

    def draw(rng: np.random.Generator, held_out: bool) -> WrittenText:
        return dialogue_in_words(
            rng,
            images=int(rng.integers(least, most + 1)),
            rounds=8,
            held_out=held_out,
            numbered=rng.random() < 0.9,
            name_first=rng.random() < name_first,
        )

    return draw


FULL_DIALOGUES = Lesson(
    "dialogues over up to 3 captions",
    _dialogues(1, 3),
    steps=1000,
    mastered=2.0,
    tokens=8000,
    rate=0.5,
    summed=SUMMED,
)

IN_WORDS = replace(FULL_DIALOGUES, tokens=10000, summed=0.0)
"""The same, every word a token: what a finished decoder is measured by."""

LESSONS = (
    Lesson("two pairs said twice", _pairs(2), steps=800, mastered=0.96, tokens=2500),
    Lesson("up to four pairs said twice", _pairs(4), steps=800, mastered=0.94, tokens=2500),
    Lesson(
        "a caption of up to two things, and keys", _quiz("keys", 1, 2), steps=800, mastered=0.96, tokens=2500
    ),
    Lesson("a caption, and keys", _quiz("keys"), steps=800, mastered=0.96, tokens=2500),
    Lesson("a caption, and questions", _quiz("questions"), steps=800, mastered=0.95, tokens=4000),
    Lesson("a caption, and a dialogue", _quiz("dialogue"), steps=800, mastered=0.96, tokens=6000, rate=0.5),
    Lesson(
        "dialogues over a caption", _dialogues(1, 1, 0.5), steps=600, mastered=0.96, tokens=8000, rate=0.5
    ),
    Lesson("numbered things", _numbered, steps=1500, mastered=0.97, tokens=2500, summed=SUMMED),
    Lesson(
        "two captions of up to two things in sums, and keys",
        _quiz("keys", 2, 2),
        steps=1500,
        mastered=0.93,
        tokens=4000,
        summed=SUMMED,
    ),
    Lesson(
        "two captions in sums, and keys",
        _quiz("keys", 2),
        steps=1500,
        mastered=0.93,
        tokens=4000,
        rate=0.5,
        summed=SUMMED,
    ),
    Lesson(
        "two captions, and a dialogue",
        _quiz("dialogue", 2),
        steps=1500,
        mastered=0.92,
        tokens=6000,
        rate=0.7,
        summed=SUMMED,
    ),
    FULL_DIALOGUES,
)
