"""Questions about one or several images of things, in dialogues of several rounds, with the answers.

Each kind of question has answers that are about equally frequent, so that guessing the commonest is of little use:

    name     What does Image 2 show?                                  tiger
    exists   Does Image 1 show the tiger?                             yes, no
    which    Which image shows the tiger?                             Image 2
    same     Do Image 1 and Image 3 show the same thing?              yes, no
    count    How many images show the tiger?                          none, one, two, three, ...
    odd      Which image is the odd one out?                          Image 2, none
    match    Which other image shows what Image 1 shows?              Image 3, none

The last binds two images: what the first shows has to be found before the other can be looked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
_NONE = "none"


@dataclass(frozen=True)
class Round:
    """A question, its answer and kind; `new` are the things of the images that it brings."""

    question: str
    answer: str
    kind: str
    new: tuple[str, ...] = ()


def make_dialogue(
    rng: np.random.Generator, things: Sequence[str], images: int, rounds: int, kinds: Sequence[str] = ()
) -> list[Round]:
    """A dialogue of `rounds` questions, of the given `kinds` (all), about `images` images of some of `things`.

    The images come with the first question, or one after the other; each brings a question that can be asked then.
    """
    shown = _shown(rng, things, images)
    known = int(rng.integers(1, images, endpoint=True)) if rounds > 1 else images
    asked: list[Round] = []
    before = 0
    for place in range(rounds):
        if place:
            known = images if place == rounds - 1 else min(known + 1, images)
        made = _question(rng, shown[:known], things, kinds or tuple(KINDS), {each.question for each in asked})
        if made is not None:
            asked.append(Round(*made, tuple(shown[before:known])))
            before = known
    return asked


def _question(
    rng: np.random.Generator,
    shown: Sequence[str],
    things: Sequence[str],
    kinds: Sequence[str],
    asked: set[str],
) -> tuple[str, str, str] | None:
    """Question, answer and kind, a question that is not among those `asked`; None where there is none."""
    possible = [kind for kind in kinds if len(shown) >= _LEAST[kind]]
    weights = np.array([_WEIGHTS[kind] for kind in possible], float)
    for _ in range(50):
        kind = str(rng.choice(possible, p=weights / weights.sum())) if possible else "name"
        made = KINDS[kind](rng, shown, things)
        if made is not None and made[0] not in asked:
            return *made, kind
    return None


def _shown(rng: np.random.Generator, things: Sequence[str], images: int) -> list[str]:
    """Things of images: often a thing comes again, else nothing would be the same or odd."""
    counts = np.arange(1, images + 1)
    weights = np.where(counts == 1, 1.0, 2.0)
    different = int(rng.choice(counts, p=weights / weights.sum()))
    pool = rng.choice(things, different, replace=False).tolist()
    return rng.permutation([*pool, *rng.choice(pool, images - different)]).tolist()


def _image(rng: np.random.Generator, shown: Sequence[str]) -> int:
    return int(rng.integers(len(shown)))


def _called(place: int) -> str:
    return f"Image {place + 1}"  # as the template calls it


def _other(rng: np.random.Generator, things: Sequence[str], than: Sequence[str]) -> str:
    return str(rng.choice([thing for thing in things if thing not in than]))


def _name(rng: np.random.Generator, shown: Sequence[str], _: Sequence[str]) -> tuple[str, str]:
    place = _image(rng, shown)
    return f"What does {_called(place)} show?", shown[place]


def _exists(rng: np.random.Generator, shown: Sequence[str], things: Sequence[str]) -> tuple[str, str]:
    place = _image(rng, shown)
    is_there = rng.random() < 0.5
    others = [thing for thing in shown if thing != shown[place]]  # of another image: the hard ones
    if is_there:
        thing = shown[place]
    elif others and rng.random() < 0.5:
        thing = str(rng.choice(others))
    else:
        thing = _other(rng, things, [shown[place]])
    return f"Does {_called(place)} show the {thing}?", "yes" if is_there else "no"


def _which(rng: np.random.Generator, shown: Sequence[str], _: Sequence[str]) -> tuple[str, str] | None:
    alone = [place for place, thing in enumerate(shown) if shown.count(thing) == 1]
    if not alone:
        return None
    place = int(rng.choice(alone))
    return f"Which image shows the {shown[place]}?", _called(place)


def _same(rng: np.random.Generator, shown: Sequence[str], _: Sequence[str]) -> tuple[str, str] | None:
    is_same = rng.random() < 0.5
    pairs = [
        (first, second)
        for first in range(len(shown))
        for second in range(first + 1, len(shown))
        if (shown[first] == shown[second]) == is_same
    ]
    if not pairs:
        return None
    first, second = pairs[int(rng.integers(len(pairs)))]
    return f"Do {_called(first)} and {_called(second)} show the same thing?", "yes" if is_same else "no"


def _count(rng: np.random.Generator, shown: Sequence[str], things: Sequence[str]) -> tuple[str, str]:
    wanted = int(rng.choice([0, *{shown.count(thing) for thing in shown}]))
    options = [thing for thing in dict.fromkeys(shown) if shown.count(thing) == wanted]
    if wanted == 0:
        options = [_other(rng, things, shown)]
    return f"How many images show the {rng.choice(options)}?", NUMBERS[wanted]


def _odd(rng: np.random.Generator, shown: Sequence[str], _: Sequence[str]) -> tuple[str, str] | None:
    """All images show the same but one, or all the same."""
    alone = [place for place, thing in enumerate(shown) if shown.count(thing) == 1]
    if len(set(shown)) > 2 or (len(set(shown)) == 2 and len(alone) != 1):
        return None
    return "Which image is the odd one out?", _called(alone[0]) if alone else _NONE


def _match(rng: np.random.Generator, shown: Sequence[str], _: Sequence[str]) -> tuple[str, str] | None:
    wanted = 1 if rng.random() < 0.3 else 2
    options = [place for place, thing in enumerate(shown) if shown.count(thing) == wanted]
    if not options:
        return None
    place = int(rng.choice(options))
    others = [each for each in range(len(shown)) if each != place and shown[each] == shown[place]]
    return f"Which other image shows what {_called(place)} shows?", _called(others[0]) if others else _NONE


_Made = tuple[str, str] | None
KINDS: dict[str, Callable[[np.random.Generator, Sequence[str], Sequence[str]], _Made]] = {
    "name": _name,
    "exists": _exists,
    "which": _which,
    "same": _same,
    "count": _count,
    "odd": _odd,
    "match": _match,
}
"""Kinds of question, each with what makes one; None where these images allow none."""

_WEIGHTS = {"name": 1, "exists": 1, "which": 2, "same": 4, "count": 2, "odd": 4, "match": 4}
"""How often each comes: images that are compared with each other take the most samples to learn."""

_LEAST = {"name": 1, "exists": 1, "which": 2, "same": 2, "count": 2, "odd": 3, "match": 2}
