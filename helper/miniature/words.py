"""Dialogues in words: what the miniature decoder reads in its pretraining, where captions stand in for pictures.

The decoder must learn from words alone what a real one brings along: who said what, which caption bears which number,
and how colour, shape and place belong together. It sees captions both after their name ("### Image 2: ...") and before
it ("... ### Image 2"), since people write either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helper.miniature.dialogues import DESCRIPTION, KINDS, Round, make_dialogue
from helper.miniature.scenes import sample_scene

SYSTEM = "You are a powerful vision-language assistant."


@dataclass(frozen=True)
class WrittenDialogue:
    """A dialogue as one string; `answers` are the (begin, end, kind) character spans to learn, end token included."""

    text: str
    answers: tuple[tuple[int, int, str], ...]


def dialogue_in_words(
    rng: np.random.Generator,
    *,
    images: int,
    rounds: int,
    held_out: bool = False,
    numbered: bool = True,
    name_first: bool = True,
    bos: str = "<s>",
    eos: str = "</s>",
) -> WrittenDialogue:
    """Draws scenes and a dialogue about them, and writes both down."""
    scenes = [sample_scene(rng, held_out=held_out) for _ in range(images)]
    dialogue = make_dialogue(rng, scenes, rounds, numbered=numbered, kinds=(*KINDS, DESCRIPTION))
    return _write(dialogue, name_first, bos, eos)


def _write(dialogue: list[Round], name_first: bool, bos: str, eos: str) -> WrittenDialogue:
    text, spans, images = f"{bos}{SYSTEM}", [], 0
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
    return WrittenDialogue(text, tuple(spans))
