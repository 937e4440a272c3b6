"""The recipes of today: what DRY_RUN=1 says of them, and the small one from end to end with tiny stand-ins."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from helper.make_tiny_world import main as draw
from training.recipe import flags_of
from utils.model import load_checkpoint

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "training" / "training_scripts" / "run_small.sh"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> dict[str, Path]:
    """A Qwen3 with a tied head, a SigLIP 2 of fixed size with its text encoder, and the miniature's data."""
    folder = tmp_path_factory.mktemp("stand-ins")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "tiny_llama")
    tokenizer.save_pretrained(folder / "decoder")
    torch.manual_seed(0)
    shape = dict(intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    decoder = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        **shape,
    )
    Qwen3ForCausalLM(decoder).save_pretrained(folder / "decoder")
    encoder = SiglipConfig(
        text_config={
            **shape,
            "hidden_size": 32,
            "vocab_size": 50,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={**shape, "hidden_size": 32, "image_size": 32, "patch_size": 16},
    )
    SiglipModel(encoder).save_pretrained(folder / "encoder")
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "encoder")
    draw(["--output", str(folder / "data"), "--records", "40"])
    return {name: folder / name for name in ("decoder", "encoder", "data")}


def start(
    stand_ins: dict[str, Path], output: Path, *words: str, **values: str
) -> subprocess.CompletedProcess:
    """run_small.sh with the stand-ins."""
    names = {"lm_model_name_or_path": "decoder", "vision_model_name_or_path": "encoder"}
    changes = [f"{key}={stand_ins[part]}" for key, part in names.items()]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHON": sys.executable, **values}
    environment |= {"DATA_PATH": str(stand_ins["data"]), "OUTPUT_DIR": str(output)}
    return subprocess.run(
        ["bash", SCRIPT, *changes, "max_seq_len=256", "global_batch=4", "gpu_memory=1.7", *words],
        cwd=output.parent,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_small_recipe_runs_as_its_dry_run_says(stand_ins, tmp_path):
    told = start(stand_ins, tmp_path / "run", "num_train_epochs=2", DRY_RUN="1")
    assert told.returncode == 0, told.stderr[-2000:]
    *lines, verdict = told.stdout.splitlines()
    assert (
        verdict.startswith("verdict: fits: ") and "missing" not in verdict and not (tmp_path / "run").exists()
    )
    assert sum(line.startswith("model ") and line.endswith(", here") for line in lines) == 2
    [steps] = re.findall(
        r"^steps: ([\d,]+): 2 epochs of [\d,]+ rows of 256 tokens, 4 a step$", told.stdout, re.M
    )

    done = start(stand_ins, tmp_path / "run", "num_train_epochs=2")
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoints = sorted((tmp_path / "run").glob("checkpoint-*"), key=lambda each: each.stat().st_mtime)
    state = json.loads((checkpoints[-1] / "trainer_state.json").read_text())
    assert state["global_step"] == state["max_steps"] == int(steps.replace(",", ""))
    model, processor = load_checkpoint(tmp_path / "run" / "final")
    assert processor.image_seq_length == 4 and model.config.attention == "mmca"
    assert model.config.text_config.model_type == "qwen3"


@pytest.mark.slow
def test_a_dry_run_says_what_does_not_fit(stand_ins, tmp_path):
    weights = stand_ins["encoder"] / "model.safetensors"
    words = [
        f"vision_model_name_or_path={tmp_path}/encoder",
        "gpu_memory=1.5",
        "dataset_names=[llava, my.json]",
    ]
    (tmp_path / "encoder").mkdir()
    for file in stand_ins["encoder"].iterdir():
        if file.name != weights.name:
            (tmp_path / "encoder" / file.name).write_bytes(file.read_bytes())
    told = start(stand_ins, tmp_path / "run", *words, "dataset_concatenate_samples=1", DRY_RUN="1")
    assert told.returncode == 1, told.stderr[-2000:]
    verdict = told.stdout.splitlines()[-1]
    assert verdict.startswith("verdict: does not fit: ") and " GiB of tensors on each GPU" in verdict
    assert verdict.endswith(f"missing: weights in {tmp_path}/encoder; data of my.json")
    assert "steps: known when the data are there" in told.stdout


def test_a_recipe_says_which_gpu_it_is_for():
    assert flags_of(["small"])[1].plan_flags == ["--gpus", "1", "--gpu_memory", "24"]
    assert flags_of(["llama3-8b", "gpu_memory=40"])[1].plan_flags == ["--gpus", "8", "--gpu_memory", "40"]
    assert flags_of(["7b"])[1].plan_flags == ["--gpus", "8"]
