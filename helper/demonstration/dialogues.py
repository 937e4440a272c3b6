"""Questions about one or several images of things, in dialogues of several rounds, with the answers.

Where an answer follows from what images show, the answer says that first:

    name     What does Image 2 show?                                  tiger
    exists   Does Image 1 show the tiger?                             bear: no
    which    Which image shows the tiger?                             bear, tiger: tiger in Image 2
    same     Do Image 1 and Image 3 show the same thing?              bear, tiger: no
    count    How many images show the tiger?                          bear, tiger, tiger: tiger in two
    odd      Which image is the odd one out?                          bear, tiger, tiger: bear in Image 1
    match    Which other image shows what Image 2 shows?              bear, tiger, tiger: tiger in Image 3

What comes last is about equally frequent for each of a kind, so that guessing the commonest is of little use. It
can be "none" for the last three. The last binds two images: what the first shows has to be found before the other can
be looked for.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
_NONE = "none"
_Made = tuple[str, str, str]
"""Question, answer, and what that follows from."""


@dataclass(frozen=True)
class Round:
    """A question, its answer and kind; `new` are the things of the images that it brings.

    `seen` are words about what images show, from which the answer follows.
    """

    question: str
    answer: str
    kind: str
    new: tuple[str, ...] = ()
    seen: str = ""

    @property
    def explained(self) -> str:
        """The answer after what it follows from."""
        return f"{self.seen} {self.answer}".lstrip()


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
            kind, (question, answer, seen) = made
            asked.append(Round(question, answer, kind, tuple(shown[before:known]), seen))
            before = known
    return asked


def _question(
    rng: np.random.Generator,
    shown: Sequence[str],
    things: Sequence[str],
    kinds: Sequence[str],
    asked: set[str],
) -> tuple[str, _Made] | None:
    """Kind, and what that makes, a question that is not among those `asked`; None where there is none."""
    possible = [kind for kind in kinds if len(shown) >= _LEAST[kind]]
    weights = np.array([_WEIGHTS[kind] for kind in possible], float)
    for _ in range(50):
        kind = str(rng.choice(possible, p=weights / weights.sum())) if possible else "name"
        made = KINDS[kind](rng, shown, things)
        if made is not None and made[0] not in asked:
            return kind, made
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


def _seen(things: Iterable[str], asked: str | None = None) -> str:
    """What images show, and the thing that is asked for, where the answer says in which or in how many it is."""
    return f"{', '.join(things)}:" + (f" {asked} in" if asked else "")


def _name(rng: np.random.Generator, shown: Sequence[str], _: Sequence[str]) -> _Made:
    place = _image(rng, shown)
    return f"What does {_called(place)} show?", shown[place], ""


def _exists(rng: np.random.Generator, shown: Sequence[str], things: Sequence[str]) -> _Made:
    place = _image(rng, shown)
    is_there = rng.random() < 0.5
    others = [thing for thing in shown if thing != shown[place]]  # of another image: the hard ones
    if is_there:
        thing = shown[place]
    elif others and rng.random() < 0.5:
        thing = str(rng.choice(others))
    else:
        thing = _other(rng, things, [shown[place]])
    return f"Does {_called(place)} show the {thing}?", "yes" if is_there else "no", _seen([shown[place]])


def _which(rng: np.random.Generator, shown: Sequence[str], _: Sequence[str]) -> _Made | None:
    alone = [place for place, thing in enumerate(shown) if shown.count(thing) == 1]
    if not alone:
        return None
    place = int(rng.choice(alone))
    return f"Which image shows the {shown[place]}?", _called(place), _seen(shown, shown[place])


def _same(rng: np.random.Generator, shown: Sequence[str], _: Sequence[str]) -> _Made | None:
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
    question = f"Do {_called(first)} and {_called(second)} show the same thing?"
    return question, "yes" if is_same else "no", _seen([shown[first], shown[second]])


def _count(rng: np.random.Generator, shown: Sequence[str], things: Sequence[str]) -> _Made:
    wanted = int(rng.choice([0, *{shown.count(thing) for thing in shown}]))
    options = [thing for thing in dict.fromkeys(shown) if shown.count(thing) == wanted]
    if wanted == 0:
        options = [_other(rng, things, shown)]
    thing = str(rng.choice(options))
    return f"How many images show the {thing}?", NUMBERS[wanted], _seen(shown, thing)


def _odd(rng: np.random.Generator, shown: Sequence[str], _: Sequence[str]) -> _Made | None:
    """All images show the same but one, or all the same."""
    alone = [place for place, thing in enumerate(shown) if shown.count(thing) == 1]
    if len(set(shown)) > 2 or (len(set(shown)) == 2 and len(alone) != 1):
        return None
    question = "Which image is the odd one out?"
    if not alone:
        return question, _NONE, _seen(shown)
    return question, _called(alone[0]), _seen(shown, shown[alone[0]])


def _match(rng: np.random.Generator, shown: Sequence[str], _: Sequence[str]) -> _Made | None:
    wanted = 1 if rng.random() < 0.3 else 2
    options = [place for place, thing in enumerate(shown) if shown.count(thing) == wanted]
    if not options:
        return None
    place = int(rng.choice(options))
    others = [each for each in range(len(shown)) if each != place and shown[each] == shown[place]]
    found = _called(others[0]) if others else _NONE
    return f"Which other image shows what {_called(place)} shows?", found, _seen(shown, shown[place])


KINDS: dict[str, Callable[[np.random.Generator, Sequence[str], Sequence[str]], _Made | None]] = {
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
