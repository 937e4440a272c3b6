"""The shipped miniature models: small, as their log says, and still what the script makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPModel

from helper.make_tiny_models import main as make_models
from helper.miniature.decoder import evaluate_decoder
from helper.miniature.encoder import evaluate_encoder
from helper.miniature.lessons import LESSONS

ASSETS = Path(__file__).parents[2] / "assets"
DECODER, ENCODER = ASSETS / "tiny_llama", ASSETS / "tiny_clip"


def logged(folder: Path, pattern: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, (folder / "pretraining.log").read_text())]


def test_both_fit_into_8_megabytes() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 8 * 2**20


def test_decoder_answers_in_words_as_its_log_says() -> None:
    decoder = AutoModelForCausalLM.from_pretrained(DECODER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(DECODER)
    accuracy = evaluate_decoder(decoder, tokenizer, seed=1)
    assert accuracy["overall"] == pytest.approx(logged(DECODER, r"'overall': ([\d.]+)")[-1], abs=0.02)


def test_encoder_tells_captions_apart_as_its_log_says() -> None:
    accuracy = evaluate_encoder(CLIPModel.from_pretrained(ENCODER, dtype=torch.float32), seed=1)
    assert accuracy == pytest.approx(logged(ENCODER, r"held-out scenes: ([\d.]+)")[-1], abs=0.02)


@pytest.mark.slow
def test_script_still_makes_such_models(tmp_path: Path) -> None:
    """A few steps of every lesson give the same architectures and vocabularies, and learning begins."""
    make_models(["--output", str(tmp_path), "--steps", "8"])
    for name, model_class in (("tiny_llama", AutoModelForCausalLM), ("tiny_clip", CLIPModel)):
        made = model_class.from_pretrained(tmp_path / name)
        shipped = model_class.from_pretrained(ASSETS / name)
        shapes = {key: tensor.shape for key, tensor in made.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in shipped.state_dict().items()}
        vocabulary = AutoTokenizer.from_pretrained(tmp_path / name).get_vocab()
        assert vocabulary == AutoTokenizer.from_pretrained(ASSETS / name).get_vocab()
    losses = logged(tmp_path / "tiny_llama", r"loss ([\d.]+)")
    assert len(losses) == len(LESSONS)
    assert losses[-2] < 3  # questions, before whole dialogues
    assert losses[0] < 6.2 and losses[-1] < 4  # chance: ln 512 = 6.2
