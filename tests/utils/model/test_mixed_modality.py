"""Batches of text and of images on different ranks: nobody waits for ever, and each loss is what it is alone."""

import json
import random
from itertools import product
from pathlib import Path

import pytest
import torch

from tests.ranks import run_ranks
from utils.model import build_visual_chat

TEXT, LABELLED = list(range(10, 18)), list(range(20, 26))
TOKENS = 5  # of an image
STAGES = ((0, False), (2, False), (2, True), (3, False), (3, True))
SETTINGS = [(*stage, training) for stage, training in product(STAGES, (True, False))]
"""ZeRO stage, checkpointing, training."""


def batch(rows: tuple[int, ...], image_token: int, seed: int) -> dict[str, torch.Tensor]:
    """A batch whose rows have so many images each; padded on the right."""
    rng = torch.Generator().manual_seed(seed)
    ids = [[1, *TEXT, *[image_token] * (TOKENS * images), *LABELLED] for images in rows]
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    made = {
        "input_ids": padded,
        "attention_mask": real,
        "labels": padded.where((padded >= LABELLED[0]) & (padded <= LABELLED[-1]), -100),
    }
    if sum(rows):
        made["pixel_values"] = torch.randn(sum(rows), 3, 16, 16, generator=rng)
    return made


@pytest.fixture(scope="module")
def alone(folders):
    torch.manual_seed(0)
    model, processor = build_visual_chat(*folders)
    return model.eval(), processor.image_token_id


def losses_of_ranks(
    models: tuple[str, str], cases: dict, folder: Path
) -> tuple[list[dict[tuple, float]], str]:
    """Of each rank the losses by setting and case, and what was printed where a rank hung or failed."""
    torch.save(cases, folder / "batches.pt")
    rank_program = Path(__file__).with_name("mixed_modality_rank.py")
    files = [*models, folder / "batches.pt", folder / "losses"]
    codes, printed = run_ranks([rank_program, *files], 2, folder, seconds=600)
    files = [folder / f"losses.{rank}.jsonl" for rank in range(2)]
    lines = [file.read_text().splitlines() if file.exists() else [] for file in files]
    losses = [{tuple(case): loss for case, loss in map(json.loads, mine)} for mine in lines]
    return losses, printed if any(codes) else ""


def lost_of(names: list[str], expected: dict[str, list[float]], found: list[dict]) -> set[tuple]:
    """The settings and cases that a rank did not come to the end of, or whose loss is not what it is alone."""
    return {
        (*setting, name)
        for setting, name in product(SETTINGS, names)
        for losses, alone in zip(found, expected[name], strict=True)
        if losses.get((*setting, name)) != pytest.approx(alone, abs=1e-5)
    }


def alone_of(model, image_layers: str, ranks: list[dict[str, torch.Tensor]]) -> list[float]:
    """The losses of batches, each by itself."""
    model.config.image_layers = image_layers
    losses = [model(**mine).loss.item() for mine in ranks]
    model.config.image_layers = "full"
    return losses


@pytest.mark.slow
def test_no_mixture_hangs_and_each_loss_is_as_alone(alone, folders, tmp_path):
    """{0, 1, 3} images on each of 2 ranks, which go through all layers or none; and in the same settings 10 random
    batches of rows with 0, 1 and 8 images."""
    model, image_token = alone
    patterns = [((first,), (second,)) for first, second in product((0, 1, 3), repeat=2)]
    rng = random.Random(0)
    mixtures = [
        tuple(tuple(rng.choice([0, 1, 8]) for _ in range(rng.choice([1, 2, 4]))) for _ in range(2))
        for _ in range(10)
    ]
    kinds = {
        "mixed modality": list(product(("full", "none"), patterns)),
        "random mixtures": [(("full", "none")[number % 2], case) for number, case in enumerate(mixtures)],
    }
    cases = {
        f"{layers} {case}": (layers, [batch(rows, image_token, seed=rank) for rank, rows in enumerate(case)])
        for layers, case in (each for listed in kinds.values() for each in listed)
    }
    kinds = {kind: [f"{layers} {case}" for layers, case in listed] for kind, listed in kinds.items()}
    found, log = losses_of_ranks(folders, cases, tmp_path)
    with torch.no_grad():
        expected = {name: alone_of(model, *case) for name, case in cases.items()}
    lost = {kind: lost_of(names, expected, found) for kind, names in kinds.items()}
    for kind, names in kinds.items():
        print(f"{kind}: tried={len(SETTINGS) * len(names)} lost={len(lost[kind])}")
    assert not any(lost.values()) and not log, f"{lost}\n{log}"
