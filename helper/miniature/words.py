"""Dialogues in words: what the miniature decoder reads in its pretraining, where captions stand in for pictures.

The decoder must learn from words alone what a real one brings along: who said what, which caption bears which number,
and how colour, shape and place belong together. It sees captions both after their name ("### Image 2: ...") and before
it ("... ### Image 2"), since people write either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from helper.miniature.dialogues import DESCRIPTION, KINDS, SINGLE_IMAGE_KINDS, Round, make_dialogue
from helper.miniature.scenes import COLORS, NUMBERS, POSITIONS, SHAPES, sample_scene
from utils.model.chat_template import DEFAULT_SYSTEM

_BOS, _EOS = "<s>", "</s>"  # as the tokenizer has them
_ABOUT_IMAGE_1 = re.compile(r" (in|of) image 1\?")
_KEY_KINDS = ("color", "shape", "position")  # a bare key tells these apart
_KEYS = re.compile("|".join((*COLORS, *SHAPES, *POSITIONS, "many", "there", "which", "more", r"image \d")))


@dataclass(frozen=True)
class WrittenText:
    """A text as one string.

    `answers` are the (begin, end, kind) character spans to learn, end token included; `passages` the (begin, end) spans
    of what stands in the place of a picture.
    """

    text: str
    answers: tuple[tuple[int, int, str], ...]
    passages: tuple[tuple[int, int], ...] = ()


def dialogue_in_words(
    rng: np.random.Generator,
    *,
    images: int,
    rounds: int,
    things: int = 4,
    held_out: bool = False,
    numbered: bool = True,
    name_first: bool = True,
) -> WrittenText:
    """Draws scenes and a dialogue about them, and writes both down."""
    scenes = [sample_scene(rng, held_out=held_out, things=things) for _ in range(images)]
    dialogue = make_dialogue(rng, scenes, rounds, numbered=numbered, kinds=(*KINDS, DESCRIPTION))
    return _write(dialogue, name_first)


def _write(dialogue: list[Round], name_first: bool) -> WrittenText:
    text, spans, passages, images = f"{_BOS}{DEFAULT_SYSTEM}", [], [], 0
    for turn in dialogue:
        text += "\n\n"
        for scene in turn.new_scenes:
            images += 1
            text += f"### Image {images}:" if name_first else "###"
            passages.append((len(text), len(f"{text} {scene.in_words()}")))
            text += f" {scene.in_words()}\n"
            text += "" if name_first else f"### Image {images}:\n"
        text += f"### Question: {turn.question}\n### Answer:"
        begin = len(text)
        text += f" {turn.answer}{_EOS}"
        spans.append((begin, len(text), turn.kind))
    return WrittenText(text, tuple(spans), tuple(passages))


def quiz(
    rng: np.random.Generator,
    form: Literal["keys", "questions", "dialogue"],
    *,
    images: int = 1,
    things: int = 4,
    rounds: int = 8,
    held_out: bool = False,
) -> WrittenText:
    """Captions and short questions about them: as keys ("circle? red."), in full, or in the form of a dialogue.

    A lone caption bears no number.
    """
    scenes = [sample_scene(rng, held_out=held_out, things=things) for _ in range(images)]
    captions = [scene.in_words() for scene in scenes]
    text, name, stop, ask, reply, end = _BOS, " image {}:", ".", " ", "", "."
    if form == "dialogue":
        text, name, stop = f"{_BOS}{DEFAULT_SYSTEM}\n", "\n### Image {}:", ""
        ask, reply, end = "\n### Question: ", "\n### Answer:", f"{_EOS}\n"
    elif images == 1:
        name = ""
    passages = []
    for number, words in enumerate(captions, start=1):
        text += name.format(number)
        passages.append((len(text), len(f"{text} {words}")))
        text += f" {words}{stop}"
    kinds = KINDS if images > 1 else _KEY_KINDS if form == "keys" else SINGLE_IMAGE_KINDS
    spans = []
    for turn in make_dialogue(rng, scenes, rounds, kinds=kinds, at_once=True):
        question = turn.question if images > 1 else _ABOUT_IMAGE_1.sub("?", turn.question)
        if form == "keys":
            question = " ".join(_KEYS.findall(question)) + "?"
        text += f"{ask}{question}{reply}"
        spans.append((len(text), len(f"{text} {turn.answer}{end.rstrip()}"), turn.kind))
        text += f" {turn.answer}{end}"
    return WrittenText(text, tuple(spans), tuple(passages))


def numbered_words(rng: np.random.Generator, images: int, rounds: int) -> WrittenText:
    """A word for each of some images, then questions after either: "image 1: red. image 2: blue. blue? image 2."

    The shortest text that asks a decoder to bind a number to what stands behind it.
    """
    kinds = (list(COLORS), SHAPES, POSITIONS, NUMBERS[1:])
    kind = kinds[rng.integers(len(kinds))]
    said = [kind[index] for index in rng.permutation(len(kind))[:images]]
    text, spans, passages = _BOS, [], []
    for number, word in enumerate(said, start=1):
        text += f" image {number}:"
        passages.append((len(text), len(f"{text} {word}")))
        text += f" {word}."
    for _ in range(rounds):
        index = int(rng.integers(len(said)))
        key, answer = f"image {index + 1}", said[index]
        if rng.random() < 0.5:
            key, answer = answer, key
        text += f" {key}?"
        spans.append((len(text), len(text) + 2 + len(answer), "number"))
        text += f" {answer}."
    return WrittenText(text + _EOS, tuple(spans), tuple(passages))


def pairs_said_twice(rng: np.random.Generator, things: int) -> WrittenText:
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
    text, spans = _BOS, []
    for again in (False, True):
        for place, index in enumerate(rng.permutation(count)):
            known, asked = (pairs[index][side] for side in rng.permutation(2))
            text += ("," if place else "") + f" {known}"
            if again:
                spans.append((len(text), len(text) + 1 + len(asked), "pair"))
            text += f" {asked}"
        text += _EOS if again else "."
    return WrittenText(text, tuple(spans))
