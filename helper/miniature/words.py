"""Dialogues in words: what the miniature decoder reads in its pretraining, where captions stand in for pictures.

The decoder must learn from words alone what a real one brings along: who said what, which caption bears which number,
and how colour, shape and place belong together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from helper.miniature.dialogues import DESCRIPTION, KINDS, SINGLE_IMAGE_KINDS, Round, make_dialogue
from helper.miniature.scenes import COLORS, POSITIONS, SHAPES, sample_scene
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
) -> WrittenText:
    """Draws scenes and a dialogue about them, and writes both down."""
    scenes = [sample_scene(rng, held_out=held_out, things=things) for _ in range(images)]
    dialogue = make_dialogue(rng, scenes, rounds, numbered=numbered, kinds=(*KINDS, DESCRIPTION))
    return _write(dialogue)


def _write(dialogue: list[Round]) -> WrittenText:
    text, spans, passages, images = f"{_BOS}{DEFAULT_SYSTEM}", [], [], 0
    for turn in dialogue:
        text += "\n\n"
        for scene in turn.new_scenes:
            images += 1
            text += f"### Image {images}:"
            passages.append((len(text), len(f"{text} {scene.in_words()}")))
            text += f" {scene.in_words()}\n"
        text += f"### Question: {turn.question}\n### Answer:"
        begin = len(text)
        text += f" {turn.answer}{_EOS}"
        spans.append((begin, len(text), turn.kind))
    return WrittenText(text, tuple(spans), tuple(passages))


def quiz(
    rng: np.random.Generator,
    form: Literal["keys", "questions"],
    *,
    images: int = 1,
    things: int = 4,
    rounds: int = 8,
    held_out: bool = False,
) -> WrittenText:
    """Captions and short questions about them, as keys ("circle? red.") or in full.

    A lone caption bears no number.
    """
    scenes = [sample_scene(rng, held_out=held_out, things=things) for _ in range(images)]
    captions = [scene.in_words() for scene in scenes]
    text, name = _BOS, " image {}:" if images > 1 else ""
    passages = []
    for number, words in enumerate(captions, start=1):
        text += name.format(number)
        passages.append((len(text), len(f"{text} {words}")))
        text += f" {words}."
    kinds = (*KINDS, DESCRIPTION) if images > 1 else _KEY_KINDS if form == "keys" else SINGLE_IMAGE_KINDS
    spans = []
    for turn in make_dialogue(rng, scenes, rounds, kinds=kinds, at_once=True):
        question = turn.question if images > 1 else _ABOUT_IMAGE_1.sub("?", turn.question)
        if form == "keys":
            question = " ".join(_KEYS.findall(question)) + "?"
        text += f" {question}"
        spans.append((len(text), len(f"{text} {turn.answer}."), turn.kind))
        text += f" {turn.answer}."
    return WrittenText(text, tuple(spans), tuple(passages))
