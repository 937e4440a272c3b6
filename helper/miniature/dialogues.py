"""Dialogues of the miniature world: rounds of questions about one or more pictures, each with the one right answer.

Seven kinds of question. Those about one picture name it ("in image 2"), or say "the image" and mean the newest one; the
last two kinds compare pictures.

    color     what color is the circle in image 2?              red
    shape     what shape is in the northwest of image 1?        square
    position  where is the red circle in image 3?               southeast
    count     how many objects are in image 2?                  three
    exist     is there a blue cross in image 1?                 yes
    which     which image has a green square?                   image 2
    more      which has more objects, image 1 or image 3?       image 3

An eighth, `description` ("describe image 2." and the scene in words), teaches; evaluation leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from helper.miniature.scenes import COLORS, NUMBERS, POSITIONS, SHAPES, Scene, Thing

SINGLE_IMAGE_KINDS = ("color", "shape", "position", "count", "exist")
COMPARING_KINDS = ("which", "more")
KINDS = SINGLE_IMAGE_KINDS + COMPARING_KINDS
DESCRIPTION = "description"
_TRIES_FOR_A_NEW_QUESTION = 20


@dataclass(frozen=True)
class Round:
    """One question with its answer; `new_scenes` are the pictures shown just before it is asked."""

    question: str
    answer: str
    kind: str
    new_scenes: tuple[Scene, ...] = ()


def make_dialogue(
    rng: np.random.Generator,
    scenes: Sequence[Scene],
    rounds: int,
    *,
    numbered: bool = True,
    kinds: Sequence[str] = KINDS,
    at_once: bool = False,
) -> list[Round]:
    """Asks `rounds` questions about `scenes`, which appear one after the other, some of them several at once.

    Args:
        numbered: name pictures by number; otherwise every question is about "the image", the newest.
        kinds: kinds to draw from; a kind that the pictures shown so far cannot answer is passed over.
        at_once: show all pictures in the first round.
    """
    dialogue: list[Round] = []
    shown = 0
    arrivals = [len(scenes)] + [0] * (rounds - 1) if at_once else _arrivals(rng, len(scenes), rounds)
    for count in arrivals:
        new = tuple(scenes[shown : shown + count])
        shown += count
        # An answer that stands in the dialogue already could be copied without looking; small scenes run out, though.
        asked_before = {turn.question for turn in dialogue} if numbered else set()
        for _ in range(_TRIES_FOR_A_NEW_QUESTION):
            question, answer, kind = _ask(rng, scenes[:shown], kinds, numbered)
            if question not in asked_before:
                break
        dialogue.append(Round(question, answer, kind, new))
    return dialogue


def _arrivals(rng: np.random.Generator, images: int, rounds: int) -> list[int]:
    """How many pictures each round brings: at least one in the first, all of them by the end."""
    arrivals = [0] * rounds
    arrivals[0] = 1
    for _ in range(images - 1):
        arrivals[int(rng.integers(0, max(1, (rounds + 1) // 2)))] += 1
    return arrivals


def _ask(
    rng: np.random.Generator, shown: Sequence[Scene], kinds: Sequence[str], numbered: bool
) -> tuple[str, str, str]:
    while True:
        kind = kinds[rng.integers(len(kinds))]
        if kind in COMPARING_KINDS:
            asked = _COMPARING[kind](rng, shown) if len(shown) > 1 and numbered else None
        else:
            index = int(rng.integers(len(shown))) if numbered else len(shown) - 1
            name = f"image {index + 1}" if numbered else "the image"
            asked = _SINGLE[kind](rng, shown[index], name)
        if asked is not None:
            return (*asked, kind)


def _pick(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    """The things of `scene` whose `attribute` no other thing there shares."""
    values = [getattr(thing, attribute) for thing in scene.things]
    return [thing for thing in scene.things if values.count(getattr(thing, attribute)) == 1]


def _color(rng: np.random.Generator, scene: Scene, name: str) -> tuple[str, str] | None:
    things = _unique(scene, "shape")
    if not things:
        return None
    thing = _pick(rng, things)
    return f"what color is the {thing.shape} in {name}?", thing.color


def _shape(rng: np.random.Generator, scene: Scene, name: str) -> tuple[str, str] | None:
    thing = _pick(rng, scene.things)
    return f"what shape is in the {POSITIONS[thing.position]} of {name}?", thing.shape


def _position(rng: np.random.Generator, scene: Scene, name: str) -> tuple[str, str] | None:
    things = _unique(scene, "name")
    if not things:
        return None
    thing = _pick(rng, things)
    return f"where is the {thing.name} in {name}?", POSITIONS[thing.position]


def _count(rng: np.random.Generator, scene: Scene, name: str) -> tuple[str, str] | None:
    return f"how many objects are in {name}?", NUMBERS[len(scene.things)]


def _exist(rng: np.random.Generator, scene: Scene, name: str) -> tuple[str, str] | None:
    present = {thing.name for thing in scene.things}
    if rng.random() < 0.5:
        return f"is there a {_pick(rng, sorted(present))} in {name}?", "yes"
    # Half of the absent ones mix a colour and a shape that are both there: they need the two to be seen together.
    thing = _pick(rng, scene.things)
    mixed = [f"{thing.color} {other.shape}" for other in scene.things]
    anything = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    absent = [each for each in (mixed if rng.random() < 0.5 else anything) if each not in present]
    return (f"is there a {_pick(rng, absent)} in {name}?", "no") if absent else None


def _description(rng: np.random.Generator, scene: Scene, name: str) -> tuple[str, str] | None:
    return f"describe {name}.", scene.in_words()


def _which(rng: np.random.Generator, shown: Sequence[Scene]) -> tuple[str, str] | None:
    index = int(rng.integers(len(shown)))
    elsewhere = {thing.name for other, scene in enumerate(shown) if other != index for thing in scene.things}
    names = sorted({thing.name for thing in shown[index].things} - elsewhere)
    return (f"which image has a {_pick(rng, names)}?", f"image {index + 1}") if names else None


def _more(rng: np.random.Generator, shown: Sequence[Scene]) -> tuple[str, str] | None:
    first, second = sorted(rng.permutation(len(shown))[:2].tolist())
    difference = len(shown[first].things) - len(shown[second].things)
    if difference == 0:
        return None
    answer = first if difference > 0 else second
    return f"which has more objects, image {first + 1} or image {second + 1}?", f"image {answer + 1}"


_SINGLE: dict[str, Callable] = {
    "color": _color,
    "shape": _shape,
    "position": _position,
    "count": _count,
    "exist": _exist,
    DESCRIPTION: _description,
}
_COMPARING: dict[str, Callable] = {"which": _which, "more": _more}
