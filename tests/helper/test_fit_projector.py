"""A projection fitted to captions in closed form, and a training that begins with it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

from helper.caption_alignment import _Sums, best_places, fitted, phrases
from helper.fit_projector import main
from helper.make_tiny_world import main as make_world
from helper.miniature.scenes import COLORS, POSITIONS, SHAPES
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


def test_tokens_of_unseen_pictures_show_the_phrases_of_their_captions(world, tmp_path) -> None:
    """Of all phrases that there are, the one nearest to a quarter's token is mostly the quarter's own."""
    assert main(command(world, tmp_path / "fitted")) == 0
    model, processor = build_visual_chat(*MODELS, dtype=torch.float32)
    start_from(model, tmp_path / "fitted")
    unseen = drawn(tmp_path / "unseen", 40, seed=2)
    things = [f"{c} {s} {p}" for c, s, p in product(COLORS, SHAPES, POSITIONS)]
    shown = torch.stack([_words(model, processor, thing) for thing in things])
    hits, asked = 0, 0
    for each in json.loads((unseen / "llava" / "detail_23k.json").read_text()):
        features = _features(model, processor, unseen / "coco" / "train2017" / each["image"])
        tokens = model.model.multi_modal_projector.linear(features)
        for phrase in phrases(each["conversations"][1]["value"])[1:]:
            token = tokens[1 + POSITIONS.index(phrase.split()[-1])]
            hits += things[int((token - shown).square().sum(1).argmin())] == phrase
            asked += 1
    assert hits > 0.8 * asked, f"{hits} of {asked}"


def _words(model, processor, phrase: str) -> torch.Tensor:
    ids = processor.tokenizer(f" {phrase}", add_special_tokens=False)["input_ids"]
    return model.get_input_embeddings().weight.detach()[ids].sum(0)


@torch.no_grad()
def _features(model, processor, path: Path) -> torch.Tensor:
    pixels = processor.image_processor([Image.open(path)], return_tensors="pt")["pixel_values"]
    return encode(model.model.vision_tower, pixels)[0]


def test_alignment_finds_the_projection_that_made_the_tokens() -> None:
    """Tokens in any order, some that show nothing, and a caption says only which phrases there are."""
    torch.manual_seed(0)
    vocabulary, back = torch.randn(30, 12), torch.randn(12, 16)
    said = [vocabulary[torch.randperm(30)[: 2 + index % 3]] for index in range(600)]
    shown = torch.zeros(600, 4, 12)
    for tokens, words in zip(shown, said, strict=True):
        tokens[torch.randperm(4)[: len(words)]] = words
    features = shown @ back + 0.01 * torch.randn(600, 4, 16)
    weight, bias, explained = fitted(features, said, ridge=1e-6, rounds=20)
    assert explained > 0.99
    torch.testing.assert_close(features @ weight.T + bias, shown, atol=0.15, rtol=0)
    _, _, unaligned = fitted(features, said, ridge=1e-6, rounds=0)
    assert unaligned > 0.9  # of the sums of whole captions


def test_each_phrase_has_one_token_and_each_token_one_phrase() -> None:
    phrase = torch.eye(3)
    tokens = torch.stack([phrase[[1, 1, 0]] + torch.tensor([[0.0], [-0.1], [0.0]]), phrase[[2, 0, 1]]])
    assert best_places(tokens, [phrase[:2], phrase[:1]]).tolist() == [[1, -1, 0], [-1, 0, -1]]
    assert sorted(best_places(tokens[:1, :2], [phrase])[0].tolist())[0] >= 0  # more phrases than tokens


def test_phrases_end_at_marks() -> None:
    assert phrases("two objects: red circle northwest, blue cross.") == [
        "two objects",
        "red circle northwest",
        "blue cross",
    ]
    assert phrases(" ., ") == []


def test_the_fit_is_ridge_regression() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(500, 7).double(), torch.randn(500, 3).double()
    sums = _Sums()
    for part in range(0, 500, 100):
        sums.add(inputs[part : part + 100], targets[part : part + 100])
    solution, explained = sums.solved(ridge=0.5)
    longer = torch.cat([inputs, (0.5 * 500) ** 0.5 * torch.eye(7).double()])
    wanted = torch.linalg.lstsq(longer, torch.cat([targets, torch.zeros(7, 3).double()])).solution
    torch.testing.assert_close(solution, wanted)
    left = (inputs @ wanted - targets).square().sum() / (targets - targets.mean(0)).square().sum()
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
