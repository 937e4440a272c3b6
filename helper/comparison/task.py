"""What is taught and asked: single images and dialogues by seed, and the encoder's features of every image."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from helper.comparison.cells import Plan
from helper.demonstration.dialogues import Round, make_dialogue
from helper.demonstration.models import make_decoder, make_encoder
from helper.demonstration.things import HELD_OUT_STYLE, LEARNT_STYLES, THINGS, Artist
from utils.atomic import atomic_directory
from utils.conversation import Conversation, Image, Turn
from utils.data.batching.encode import ImageFeatures
from utils.data.batching.vision_feature_cache import FeatureStore, FeatureWriter, image_key
from utils.model.building import build_processor
from utils.model.pretrained_encoders import load_vision_tower
from utils.model.vision import encode_images

Images = Mapping[str, Sequence[Image]]
"""Of each thing, by its name."""
IMAGES, ROUNDS = 3, 4
"""Of a dialogue."""
_DRAWN = 30  # images of a thing in a style
_ENCODED_TOGETHER = 32
_SINGLES, _DIALOGUES, _QUESTIONS, _NAMES = range(4)


@dataclass(frozen=True)
class Sample:
    """A conversation with the kind of each of its questions."""

    conversation: Conversation
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class HeldOut:
    """What a trained model is asked; `among_others` by the number of other images."""

    singles: Sequence[Sample]
    names: Sequence[Sample]
    dialogues: Sequence[Sample]
    among_others: Mapping[int, Sequence[Sample]]


@dataclass(frozen=True)
class Task:
    """The parts that are joined, and the images to learn from and those held out, of the same things.

    Everything is a function of the seed, and the same for each form.
    """

    decoder: Path
    encoder: Path
    features: ImageFeatures
    learnt: Images
    held_out: Images

    def singles(self, seed: int) -> Iterator[Sample]:
        """Samples of a single image, without end."""
        rng = np.random.default_rng([seed, _SINGLES])
        while True:
            yield single(rng, self.learnt)

    def names(self, seed: int) -> Iterator[Sample]:
        """Dialogues that ask what each of two or three images shows, without end."""
        return self._dialogues(np.random.default_rng([seed, _NAMES]), ("name",))

    def dialogues(self, seed: int) -> Iterator[Sample]:
        """Dialogues of all kinds over two or three images, without end."""
        return self._dialogues(np.random.default_rng([seed, _DIALOGUES]))

    def _dialogues(self, rng: np.random.Generator, kinds: Sequence[str] = ()) -> Iterator[Sample]:
        while True:
            yield dialogue(rng, self.learnt, IMAGES - int(rng.random() < 1 / 3), kinds)

    def questions(self, seed: int, plan: Plan) -> HeldOut:
        """About images in the style that is held out; dialogues over three."""
        rng, images = np.random.default_rng([seed, _QUESTIONS]), self.held_out
        return HeldOut(
            [single(rng, images) for _ in range(plan.held_out_singles)],
            [dialogue(rng, images, IMAGES, ("name",)) for _ in range(plan.held_out_names)],
            [dialogue(rng, images, IMAGES) for _ in range(plan.held_out_dialogues)],
            {
                others: [among_others(rng, images, others) for _ in range(plan.distractor_dialogues)]
                for others in plan.distractors
            },
        )


def single(rng: np.random.Generator, images: Images) -> Sample:
    """What is this?"""
    thing = str(rng.choice(list(images)))
    return _sample(rng, images, [Round("What is this?", thing, "name", (thing,))])


def dialogue(rng: np.random.Generator, images: Images, count: int, kinds: Sequence[str] = ()) -> Sample:
    """Questions of these kinds (all) about so many images."""
    return _sample(rng, images, make_dialogue(rng, list(images), count, ROUNDS, kinds))


def among_others(rng: np.random.Generator, images: Images, others: int) -> Sample:
    """What each of the first three of so many images and one more shows, all of them different things."""
    things = rng.choice(list(images), others + 1, replace=False).tolist()
    asked = [(f"What does Image {number} show?", thing) for number, thing in enumerate(things, 1)]
    rounds = [
        Round(*pair, "name", tuple(() if place else things)) for place, pair in enumerate(asked[:IMAGES])
    ]
    return _sample(rng, images, rounds)


def _sample(rng: np.random.Generator, images: Images, rounds: Sequence[Round]) -> Sample:
    turns = [
        Turn(each.question, each.answer, tuple(images[thing][rng.integers(_DRAWN)] for thing in each.new))
        for each in rounds
    ]
    return Sample(Conversation(tuple(turns), system=""), tuple(each.kind for each in rounds))


def commonest(samples: Sequence[Sample]) -> float:
    """The share that is right where each question is given the commonest answer of its kind."""
    answers: dict[str, Counter[str | None]] = defaultdict(Counter)
    for sample in samples:
        for kind, turn in zip(sample.kinds, sample.conversation.turns, strict=True):
            answers[kind][turn.answer] += 1
    return sum(max(each.values()) for each in answers.values()) / sum(map(Counter.total, answers.values()))


def task_of(folder: Path, plan: Plan) -> Task:
    """What a folder holds: parts, images and features, made where they are not there yet.

    Raises `UsageError` where a package is missing.
    """
    decoder = make_decoder(folder / ("decoder" if plan.decoder == "smollm2" else plan.decoder), plan.decoder)
    encoder = make_encoder(folder / "encoder")
    things = list(THINGS)[: plan.things]
    if not (folder / "images").is_dir():
        with atomic_directory(folder / "images") as aside:
            for place, styles in enumerate((LEARNT_STYLES, (HELD_OUT_STYLE,))):
                (aside / str(place)).mkdir()
                artist = Artist(np.random.default_rng(place), styles)
                for thing in THINGS:
                    for number in range(_DRAWN):
                        artist.image(thing).save(aside / str(place) / f"{thing}-{number}.png")
    learnt, held_out = (
        {
            thing: [Image(folder / "images" / place / f"{thing}-{number}.png") for number in range(_DRAWN)]
            for thing in things
        }
        for place in "01"
    )
    store = FeatureStore(folder / "features")
    images = [image for part in (learnt, held_out) for of_thing in part.values() for image in of_thing]
    missing = [image for image in images if image_key(image) not in store]
    if missing:
        _encode(missing, decoder, encoder, FeatureWriter(folder / "features"))
        store = FeatureStore(folder / "features")
    return Task(decoder, encoder, store, learnt, held_out)


def _encode(images: Sequence[Image], decoder: Path, encoder: Path, writer: FeatureWriter) -> None:
    processor = build_processor(str(decoder), str(encoder))
    tower = load_vision_tower(str(encoder), torch.float32).eval()
    for start in range(0, len(images), _ENCODED_TOGETHER):
        some = images[start : start + _ENCODED_TOGETHER]
        with torch.no_grad():
            features = encode_images(tower, processor.pixel_values(some))
        writer.add([image_key(image) for image in some], features)
    writer.close()
