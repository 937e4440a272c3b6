"""What the comparison teaches and asks: single images, and dialogues over several, of pictograms in several styles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from utils.conversation import Conversation, Image, Turn

Images = Mapping[str, Sequence[Image]]
"""Of each thing, by its name."""
IMAGES, TURNS = 3, 4
"""Of a dialogue, at most."""


@dataclass(frozen=True)
class Sample:
    """A conversation with the kind of each of its questions."""

    conversation: Conversation
    kinds: tuple[str, ...]


def single(numbers: Random, images: Images) -> Sample:
    """What is this?"""
    thing = numbers.choice(sorted(images))
    turn = Turn("What is this?", thing, (numbers.choice(images[thing]),))
    return Sample(Conversation((turn,), system=""), ("name",))


def dialogue(numbers: Random, images: Images, count: int = IMAGES) -> Sample:
    """Up to `TURNS` questions of different kinds about so many images, two or more of which often show the same."""
    things = [numbers.choice(sorted(images)) for _ in range(count)]
    if count > 1 and numbers.random() < 0.5:
        first, second = numbers.sample(range(count), 2)
        things[second] = things[first]
    asked = _questions(numbers, things, sorted(images))
    numbers.shuffle(asked)
    return _conversation(numbers, images, things, asked[:TURNS])


def among_others(numbers: Random, images: Images, others: int) -> Sample:
    """What is in each of the first three of so many images and one more, all of which show different things."""
    things = numbers.sample(sorted(images), others + 1)
    asked = [("name", f"What is in image {number}?", thing) for number, thing in enumerate(things, 1)]
    return _conversation(numbers, images, things, asked[:IMAGES])


def _questions(numbers: Random, things: Sequence[str], known: Sequence[str]) -> list[tuple[str, str, str]]:
    """One of each kind that these images allow: its kind, question and answer."""
    places = range(len(things))
    one, place = numbers.choice(places), numbers.choice(places)
    wanted = things[place] if numbers.random() < 0.5 else numbers.choice(known)
    counted = numbers.choice([*things, numbers.choice(known)])
    asked = [
        ("name", f"What is in image {one + 1}?", things[one]),
        ("yes or no", f"Does image {place + 1} show a {wanted}?", _yes(things[place] == wanted)),
        ("count", f"How many images show a {counted}?", str(things.count(counted))),
    ]
    alone = [place for place in places if things.count(things[place]) == 1]
    if alone:
        place = numbers.choice(alone)
        asked.append(("which", f"Which image shows a {things[place]}?", f"image {place + 1}"))
    if len(things) > 1:
        first, second = numbers.sample(places, 2)
        question = f"Do image {first + 1} and image {second + 1} show the same?"
        asked.append(("same", question, _yes(things[first] == things[second])))
    if len(things) > 2:
        if len(alone) == 1:
            asked.append(("odd one out", "Which image is the odd one out?", f"image {alone[0] + 1}"))
        same = [other for other in places if other != one and things[other] == things[one]]
        answer = f"image {same[0] + 1}" if same else "none"
        asked.append(("multi-hop", f"Which other image shows what image {one + 1} shows?", answer))
    return asked


def _conversation(
    numbers: Random, images: Images, things: Sequence[str], asked: Sequence[tuple[str, str, str]]
) -> Sample:
    shown = tuple(numbers.choice(images[thing]) for thing in things)
    kinds, questions, answers = zip(*asked, strict=True)
    turns = (
        Turn(*pair, () if number else shown)
        for number, pair in enumerate(zip(questions, answers, strict=True))
    )
    return Sample(Conversation(tuple(turns), system=""), kinds)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
