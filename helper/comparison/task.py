"""What is taught and asked, from a folder of parts: samples by seed, and the encoder's features of every image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from helper.comparison.cells import Plan
from helper.comparison.parts import HELD_OUT, SHOWN, THINGS
from helper.comparison.questions import IMAGES, Images, Sample, among_others, dialogue, single
from utils.conversation import Image
from utils.data.encode import PictureFeatures
from utils.data.picture_features import FeatureStore, FeatureWriter, picture_key
from utils.model.building import build_processor
from utils.model.vision import encode_images, load_vision_tower

_ENCODED_TOGETHER = 32


@dataclass(frozen=True)
class HeldOut:
    """What a trained model is asked; `among_others` by the number of other images."""

    singles: Sequence[Sample]
    dialogues: Sequence[Sample]
    among_others: Mapping[int, Sequence[Sample]]


@dataclass(frozen=True)
class Task:
    """The parts that are joined, and the images that are shown and those that are held out, of the same things.

    Everything is a function of the seed, and the same for each form.
    """

    decoder: str
    encoder: str
    features: PictureFeatures
    shown: Images
    held_out: Images

    def singles(self, seed: int) -> Iterator[Sample]:
        """Samples of a single image, without end."""
        numbers = Random(f"singles {seed}")
        while True:
            yield single(numbers, self.shown)

    def dialogues(self, seed: int) -> Iterator[Sample]:
        """Dialogues over two or three images, without end."""
        numbers = Random(f"dialogues {seed}")
        while True:
            yield dialogue(numbers, self.shown, numbers.choice((IMAGES - 1, IMAGES, IMAGES)))

    def questions(self, seed: int, plan: Plan) -> HeldOut:
        """About images in the style that is held out; dialogues over three."""
        numbers = Random(f"held out {seed}")
        return HeldOut(
            [single(numbers, self.held_out) for _ in range(plan.held_out_singles)],
            [dialogue(numbers, self.held_out) for _ in range(plan.held_out_dialogues)],
            {
                others: [
                    among_others(numbers, self.held_out, others) for _ in range(plan.distractor_dialogues)
                ]
                for others in plan.distractors
            },
        )


def task_of(folder: Path, plan: Plan) -> Task:
    """From the parts in a folder; the features of its images are computed where they are not there yet."""
    things = list(THINGS)[: plan.things]
    shown: dict[str, list[Image]] = {
        thing: [image for style in SHOWN for image in _images(folder, style, thing)] for thing in things
    }
    held_out = {thing: _images(folder, HELD_OUT, thing) for thing in things}
    decoder, encoder = str(folder / "decoder"), str(folder / "encoder")
    features = folder / "features"
    if not FeatureStore(features):
        images = [
            image for of_style in (shown, held_out) for of_thing in of_style.values() for image in of_thing
        ]
        processor = build_processor(decoder, encoder)
        tower = load_vision_tower(encoder, torch.float32).eval()
        writer = FeatureWriter(features)
        for start in range(0, len(images), _ENCODED_TOGETHER):
            some = images[start : start + _ENCODED_TOGETHER]
            with torch.no_grad():
                encoded = encode_images(tower, processor.pixel_values(some))
            writer.add([picture_key(image) for image in some], encoded)
        writer.close()
    return Task(decoder, encoder, FeatureStore(features), shown, held_out)


def _images(folder: Path, style: str, thing: str) -> list[Image]:
    return [Image(path) for path in sorted((folder / "images" / style).glob(f"{thing}-*.png"))]
