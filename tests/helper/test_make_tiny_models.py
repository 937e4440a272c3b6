"""The models in assets/: small, and still what the script makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPModel

from helper.make_tiny_models import main as make_models

ASSETS = Path(__file__).parents[2] / "assets"


def test_both_fit_into_8_megabytes() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 8 * 2**20


@pytest.mark.slow
def test_script_still_makes_such_models(tmp_path: Path) -> None:
    make_models(["--output", str(tmp_path), "--steps", "2"])
    for name, model_class in (("tiny_llama", AutoModelForCausalLM), ("tiny_clip", CLIPModel)):
        made = model_class.from_pretrained(tmp_path / name)
        shipped = model_class.from_pretrained(ASSETS / name)
        shapes = {key: tensor.shape for key, tensor in made.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in shipped.state_dict().items()}
        vocabulary = AutoTokenizer.from_pretrained(tmp_path / name).get_vocab()
        assert vocabulary == AutoTokenizer.from_pretrained(ASSETS / name).get_vocab()
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            path.name for path in (ASSETS / name).iterdir()
        }
