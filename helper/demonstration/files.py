"""Writes what the demonstration learns from and is asked: data of one's own, in LLaVA's shape (docs/own-data.md).

{data}/learn.jsonl       dialogues about images in the styles to learn from
{data}/held_out.jsonl    dialogues in the style that is held out
{data}/image/*.png       their images; each comes in several dialogues, so that its features are computed once
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helper.demonstration.dialogues import Round, make_dialogue
from helper.demonstration.models import make_decoder, make_encoder
from helper.demonstration.things import HELD_OUT_STYLE, LEARNT_STYLES, THINGS, Artist
from utils.atomic import atomic_directory

SINGLES = 0.2
"""The share of dialogues with one image and one question; two thirds of the others have three images, a third two."""
ROUNDS = 4
"""Of a dialogue about several images, at most."""
IMAGES = {"learn": 60, "held_out": 20}
"""Of each thing."""

_Dialogue = list[tuple[Round, list[str]]]
"""Questions, each with the paths of the images that it brings."""


@dataclass(frozen=True)
class Demonstration:
    """Where decoder and encoder, the data to learn from, and the dialogues to be asked lie."""

    decoder: Path
    encoder: Path
    data: Path
    held_out: Path
    script: str
    """The training script that has the settings."""


def make_demonstration(folder: Path, dialogues: int, held_out: int, seed: int) -> Demonstration:
    """Decoder, encoder and dialogues in `folder`; what is there already is kept.

    Raises `UsageError` where a package of requirements-demo.txt is missing.
    """
    decoder, encoder = make_decoder(folder / "decoder"), make_encoder(folder / "encoder")
    data = folder / f"dialogues-{dialogues}-{held_out}-{seed}"
    if not data.exists():
        with atomic_directory(data) as aside:
            _write(aside, "learn", LEARNT_STYLES, dialogues, seed)
            _write(aside, "held_out", (HELD_OUT_STYLE,), held_out, seed)
    return Demonstration(decoder, encoder, data, data / "held_out.json", "run_demo.sh")


def draw_dialogue(rng: np.random.Generator) -> list[Round]:
    """One of the mixture that the demonstration consists of."""
    if rng.random() < SINGLES:
        return make_dialogue(rng, tuple(THINGS), 1, 1)
    return make_dialogue(rng, tuple(THINGS), 3 if rng.random() < 2 / 3 else 2, ROUNDS)


def _write(root: Path, part: str, styles: tuple[str, ...], count: int, seed: int) -> None:
    rng = np.random.default_rng([seed, *part.encode()])
    artist, images = Artist(rng, styles), IMAGES[part]
    (root / "image").mkdir(exist_ok=True)
    for thing in THINGS:
        for number in range(images):
            artist.image(thing).save(root / _path(part, thing, number))
    dialogues = [
        [
            (each, [_path(part, thing, rng.integers(images)) for thing in each.new])
            for each in draw_dialogue(rng)
        ]
        for _ in range(count)
    ]
    content = _records(dialogues) if part == "learn" else _questions(dialogues)
    (root / f"{part}.json").write_text(json.dumps(content), encoding="utf-8")


def _records(dialogues: list[_Dialogue]) -> list[dict]:
    """As training reads them, in LLaVA's shape."""
    records = []
    for dialogue in dialogues:
        messages = []
        for each, shown in dialogue:
            question = "<image>\n" * len(shown) + each.question
            messages += [{"from": "human", "value": question}, {"from": "gpt", "value": each.answer}]
        records.append(
            {"image": [path for _, shown in dialogue for path in shown], "conversations": messages}
        )
    return records


def _questions(dialogues: list[_Dialogue]) -> dict[str, list]:
    """As evaluation reads them, with answers and kinds."""
    return {
        f"dialogue {number}": [
            [each.question, " ".join(shown), each.answer, each.kind] for each, shown in dialogue
        ]
        for number, dialogue in enumerate(dialogues, start=1)
    }


def _path(part: str, thing: str, number: int) -> str:
    return f"image/{part}-{thing}-{number}.png"
