"""Writes what the demonstration learns from, as data of one's own in LLaVA's shape, and what it is asked.

single.json, names.json, learn.json    dialogues in the styles to learn from, the simplest first
held_out.json                          dialogues in the style that is held out, with answers and kinds
image/*.png                            their images; each comes in several dialogues: its features are computed once
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helper.demonstration.dialogues import Round, make_dialogue
from helper.demonstration.models import make_decoder, make_encoder
from helper.demonstration.things import HELD_OUT_STYLE, LEARNT_STYLES, THINGS, Artist
from utils.atomic import atomic_directory

FIRST = {"single": 128, "names": 128}
"""Dialogues that come before all others: about one image, and about several that are to be named."""
ROUNDS = {"learn": 4, "held_out": 4}
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
            counts = {**FIRST, "learn": dialogues}
            _write(aside, "learn", LEARNT_STYLES, counts, seed)
            _write(aside, "held_out", (HELD_OUT_STYLE,), {"held_out": held_out}, seed)
    return Demonstration(decoder, encoder, data, data / "held_out.json", "run_demo.sh")


def draw_dialogue(rng: np.random.Generator, part: str) -> list[Round]:
    """One of those that a file consists of."""
    if part == "single":
        return make_dialogue(rng, tuple(THINGS), 1, 1, ("name",))
    images = 3 if part == "held_out" or rng.random() < 2 / 3 else 2
    rounds = ROUNDS.get(part, ROUNDS["learn"])
    return make_dialogue(rng, tuple(THINGS), images, rounds, ("name",) if part == "names" else ())


def _write(root: Path, name: str, styles: tuple[str, ...], counts: dict[str, int], seed: int) -> None:
    """Images in some styles, and a file of each number of dialogues about them."""
    rng = np.random.default_rng([seed, *name.encode()])
    artist, images = Artist(rng, styles), IMAGES[name]
    (root / "image").mkdir(exist_ok=True)

    def path(thing: str, number: int) -> str:
        return f"image/{name}-{thing}-{number}.png"

    for thing in THINGS:
        for number in range(images):
            artist.image(thing).save(root / path(thing, number))
    for part, count in counts.items():
        dialogues = [
            [
                (each, [path(thing, rng.integers(images)) for thing in each.new])
                for each in draw_dialogue(rng, part)
            ]
            for _ in range(count)
        ]
        content = _questions(dialogues) if part == "held_out" else _records(dialogues)
        (root / f"{part}.json").write_text(json.dumps(content), encoding="utf-8")


def _records(dialogues: list[_Dialogue]) -> list[dict]:
    """As training reads them, in LLaVA's shape."""
    records = []
    for dialogue in dialogues:
        messages = []
        for each, shown in dialogue:
            question = "<image>\n" * len(shown) + each.question
            messages.append({"from": "human", "value": question, "kind": each.kind})
            messages.append({"from": "gpt", "value": each.explained})
        records.append(
            {"image": [path for _, shown in dialogue for path in shown], "conversations": messages}
        )
    return records


def _questions(dialogues: list[_Dialogue]) -> dict[str, list]:
    """As evaluation reads them, with answers and kinds."""
    return {
        f"dialogue {number}": [
            [each.question, " ".join(shown), each.explained, each.kind] for each, shown in dialogue
        ]
        for number, dialogue in enumerate(dialogues, start=1)
    }
