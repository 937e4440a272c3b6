"""A projection fitted to captions in closed form, and a training that begins with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from helper.fit_projector import _Sums, main
from helper.make_tiny_world import main as make_world
from utils.model import build_visual_chat
from utils.model.encoding import encode
from utils.model.start_from import start_from

ASSETS = Path(__file__).parents[2] / "assets"
MODELS = str(ASSETS / "tiny_llama"), str(ASSETS / "tiny_clip")


def drawn(folder: Path, descriptions: int, seed: int) -> Path:
    sizes = {
        "descriptions": descriptions,
        "reasoning": 1,
        "conversations": 1,
        "eval_dialogues": 1,
        "seed": seed,
    }
    make_world(["--output", str(folder), *(f"--{name}={count}" for name, count in sizes.items())])
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return drawn(tmp_path_factory.mktemp("world"), 600, seed=1)


def command(world: Path, output: Path, *more: str) -> list[str]:
    decoder, encoder = MODELS
    captions = world / "llava" / "detail_23k.json"
    words = [
        "--lm_model_name_or_path",
        decoder,
        "--vision_model_name_or_path",
        encoder,
        "--output_dir",
        str(output),
    ]
    return [
        *words,
        "--dataset_names",
        str(captions),
        "--image_folder",
        str(world / "coco" / "train2017"),
        *more,
    ]


def test_tokens_of_unseen_pictures_say_the_words_of_their_captions(world, tmp_path) -> None:
    """Of twenty captions the one that fits best is nearly always the picture's own."""
    assert main(command(world, tmp_path / "fitted")) == 0
    model, processor = build_visual_chat(*MODELS, dtype=torch.float32)
    start_from(model, tmp_path / "fitted")
    unseen = drawn(tmp_path / "unseen", 20, seed=2)
    records = json.loads((unseen / "llava" / "detail_23k.json").read_text())
    said = torch.stack([_words(model, processor, each["conversations"][1]["value"]) for each in records])
    own = 0
    for index, each in enumerate(records):
        features = _features(model, processor, unseen / "coco" / "train2017" / each["image"])
        seen = model.model.multi_modal_projector.linear(features).sum(0)
        own += int((seen - said).square().sum(1).argmin()) == index
    assert own >= 18


def _words(model, processor, caption: str) -> torch.Tensor:
    ids = processor.tokenizer(f" {caption}", add_special_tokens=False)["input_ids"]
    return model.get_input_embeddings().weight.detach()[ids].sum(0)


@torch.no_grad()
def _features(model, processor, path: Path) -> torch.Tensor:
    pixels = processor.image_processor([Image.open(path)], return_tensors="pt")["pixel_values"]
    return encode(model.model.vision_tower, pixels)[0]


def test_the_fit_is_ridge_regression() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(500, 7).double(), torch.randn(500, 3).double()
    sums = _Sums()
    for part in range(0, 500, 100):
        sums.add(inputs[part : part + 100], targets[part : part + 100])
    weight, bias, explained = sums.solved(ridge=0.5)
    longer = torch.cat([inputs, (0.5 * 500) ** 0.5 * torch.eye(7).double()])
    wanted = torch.linalg.lstsq(longer, torch.cat([targets, torch.zeros(7, 3).double()])).solution.float()
    torch.testing.assert_close(torch.cat([weight.T, bias[None]]), wanted)
    left = (inputs @ wanted.double() - targets).square().sum() / (targets - targets.mean(0)).square().sum()
    assert explained == pytest.approx(1 - float(left), abs=1e-5)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--vis_proj", "perceiver"], "only the linear projection can be fitted"),
        (["--dataset_samples", "50"], "at least 100 are needed: name a dataset of captions"),
        (["--image_folder", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_cost_a_line_and_write_nothing(world, tmp_path, capsys, more, message) -> None:
    assert main(command(world, tmp_path / "fitted", *more)) == 2
    said = capsys.readouterr().err
    assert message in said.splitlines()[-1] and said.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "fitted").exists()
