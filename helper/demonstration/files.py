"""Writes what the demonstration trains on and is asked, in published formats.

{data}/coco/train2017/*.png, llava/conversation_58k.json     one to three images, several rounds: `llava_dial`
{data}/eval/held_out.json, eval/image/*.png                  the held-out style, with answers and kinds
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from helper.demonstration.dialogues import Round, make_dialogue
from helper.demonstration.models import make_decoder, make_encoder
from helper.demonstration.things import HELD_OUT_STYLE, LEARNT_STYLES, THINGS, Artist
from utils.atomic import atomic_directory

TRAINING = "llava/conversation_58k.json"
IMAGES = "coco/train2017"


@dataclass(frozen=True)
class Size:
    """How many dialogues are written, and of how many images and rounds at most."""

    dialogues: int = 4000
    held_out: int = 150
    images: int = 3
    rounds: int = 4
    seed: int = 1234


@dataclass(frozen=True)
class Demonstration:
    """Where everything lies."""

    decoder: Path
    encoder: Path
    data: Path

    @property
    def training(self) -> Path:
        """The annotations to learn from, in LLaVA's form."""
        return self.data / TRAINING

    @property
    def images(self) -> Path:
        """The folder of their images."""
        return self.data / IMAGES

    @property
    def held_out(self) -> Path:
        """The evaluation set in the style that is not learnt from."""
        return self.data / "eval" / "held_out.json"


def make_demonstration(folder: Path, size: Size = Size()) -> Demonstration:
    """Decoder, encoder and dialogues in `folder`; what is there already is kept.

    Raises `UsageError` where a package of requirements-demo.txt is missing.
    """
    name = "dialogues-" + "-".join(str(value) for value in asdict(size).values())
    data = folder / name
    decoder, encoder = make_decoder(folder / "decoder"), make_encoder(folder / "encoder")
    if not data.exists():
        with atomic_directory(data) as aside:
            _write_training(aside, size)
            _write_held_out(aside, size)
    return Demonstration(decoder, encoder, data)


def draw_dialogue(rng: np.random.Generator, size: Size) -> list[Round]:
    """A dialogue about one to `size.images` images, more often about several."""
    images = int(rng.choice(size.images, p=_shares(size.images))) + 1
    return make_dialogue(rng, tuple(THINGS), images, size.rounds)


def _shares(images: int) -> np.ndarray:
    weights = np.arange(2, images + 2, dtype=float)
    return weights / weights.sum()


def _write_training(root: Path, size: Size) -> None:
    rng = np.random.default_rng([size.seed, 0])
    artist = Artist(rng, LEARNT_STYLES)
    (root / IMAGES).mkdir(parents=True)
    records, drawn = [], 0
    for number in range(size.dialogues):
        names, messages = [], []
        for each in draw_dialogue(rng, size):
            for thing in each.new:
                drawn += 1
                names.append(f"{drawn:012d}.png")
                artist.image(thing).save(root / IMAGES / names[-1], compress_level=1)
            messages += [
                {"from": "human", "value": "<image>\n" * len(each.new) + each.question},
                {"from": "gpt", "value": each.answer},
            ]
        records.append({"id": str(number), "image": names, "conversations": messages})
    _write_json(root / TRAINING, records)


def _write_held_out(root: Path, size: Size) -> None:
    rng = np.random.default_rng([size.seed, 1])
    artist = Artist(rng, (HELD_OUT_STYLE,))
    folder = root / "eval" / "image"
    folder.mkdir(parents=True)
    dialogues, drawn = {}, 0
    for number in range(size.held_out):
        turns = []
        for each in draw_dialogue(rng, size):
            names = []
            for thing in each.new:
                drawn += 1
                names.append(f"{drawn}-{thing}.png")
                artist.image(thing).save(folder / names[-1])
            turns.append([each.question, " ".join(names), each.answer, each.kind])
        dialogues[f"dialogue {number + 1}"] = turns
    _write_json(root / "eval" / "held_out.json", dialogues)


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
