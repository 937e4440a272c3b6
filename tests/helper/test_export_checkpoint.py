"""Forms of a checkpoint made of each other, over the miniature's own base models."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helper.export_checkpoint import main
from tests.tiny import moved
from training.checkpointing.folders import damage, read_manifest, write_manifest
from training.checkpointing.run_record import Run
from utils.model import LoraSettings, build_visual_chat, load_checkpoint, save_trained_only

pytestmark = pytest.mark.integration

ASSETS = Path(__file__).parents[2] / "assets"
LORA = LoraSettings(lang_dim=2, vis_dim=3, vis_module_name="layers.", alpha=4)


def make(folder: Path, lora: LoraSettings | None = None) -> Path:
    """A checkpoint in the trained form, as epochs have it."""
    torch.manual_seed(0)
    model, processor = build_visual_chat(str(ASSETS / "tiny_llama"), str(ASSETS / "tiny_clip"), lora=lora)
    save_trained_only(moved(model, 0.05), processor, folder)
    Run(processes=8, zero_stage=3, precision="bfloat16", global_batch=128).save(folder)
    log = [{"loss": 3.0}, {"eval_loss": 2.5}, {"loss": 1.0}, {"eval_loss": 1.25}]
    state = {"global_step": 100, "max_steps": 1000, "epoch": 0.5, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("plain") / "checkpoint-100")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("adapted") / "checkpoint-100", LORA)


def run(source: Path, output: Path, *words: str) -> int:
    return main(["--checkpoint_path", str(source), "--output", str(output), *words])


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)[0].state_dict()


def test_there_and_back(plain, tmp_path, capsys):
    assert run(plain, tmp_path / "full") == 0
    assert run(tmp_path / "full", tmp_path / "trained", "--form", "trained") == 0
    printed = capsys.readouterr().out
    assert printed.count("logits differ by 0.0e+00 of their size; 100.0% of the likeliest") == 2
    before, after = (load_file(folder / "trained.safetensors") for folder in (plain, tmp_path / "trained"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for form in ("full", "trained"):
        assert damage(tmp_path / form) == [] and "README.md" in read_manifest(tmp_path / form).files
    card = (tmp_path / "full" / "README.md").read_text()
    assert (
        "| steps | 100 of 1,000 |" in card and "| evaluation loss | 2.5000 at first, 1.2500 at last |" in card
    )
    assert "How it was trained" not in (tmp_path / "trained" / "README.md").read_text()  # full does not know


def test_adapters_are_merged(adapted, tmp_path):
    assert run(adapted, tmp_path / "full") == 0
    merged, trained = state_of(tmp_path / "full"), state_of(adapted)
    name = "model.language_model.layers.0.self_attn.q_proj"
    down, up = (trained[f"{name}.lora_{each}.default.weight"] for each in "AB")
    expected = trained[f"{name}.base_layer.weight"] + 4 / 2 * up @ down
    torch.testing.assert_close(merged[f"{name}.weight"], expected, rtol=2e-3, atol=1e-4)  # float16
    assert not [key for key in merged if "lora" in key]


def test_merged_adapters_cannot_be_taken_apart(adapted, tmp_path, capsys):
    assert run(adapted, tmp_path / "full") == 0
    for form in ("trained", "adapter"):
        assert run(tmp_path / "full", tmp_path / form, "--form", form) == 2
        assert not (tmp_path / form).exists()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "can be saved in the full form only" in errors[0] and "has no adapters" in errors[1]


def test_peft_loads_the_adapters_over_the_base_model(adapted, tmp_path, capsys):
    assert run(adapted, tmp_path / "adapters", "--form", "adapter") == 0
    assert "adapters read back by peft give the same weights" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {
        "decoder",
        "encoder",
        "manifest.json",
    }
    base = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny_llama")
    decoder = PeftModel.from_pretrained(base, tmp_path / "adapters" / "decoder").merge_and_unload()
    assert run(adapted, tmp_path / "full") == 0
    merged = state_of(tmp_path / "full")
    for name, tensor in decoder.model.layers.state_dict().items():
        torch.testing.assert_close(tensor.half(), merged[f"model.language_model.layers.{name}"])


def test_a_damaged_source_is_refused(plain, tmp_path, capsys):
    source = tmp_path / "checkpoint-100"
    source.mkdir()
    for file in plain.rglob("*"):
        (source / file.name).write_bytes(file.read_bytes())
    content = bytearray((source / "trained.safetensors").read_bytes())
    content[-1] ^= 1
    (source / "trained.safetensors").write_bytes(content)
    assert run(source, tmp_path / "full") == 2
    assert "trained.safetensors is damaged: its content has changed" in capsys.readouterr().err
    assert not (tmp_path / "full").exists()


def test_other_base_models_are_noticed(plain, tmp_path, capsys):
    """The full form's frozen weights are no longer those that the trained form would refer to."""
    assert run(plain, tmp_path / "full") == 0
    path = tmp_path / "full" / "model.safetensors"
    state = load_file(path)
    state["model.language_model.layers.0.mlp.up_proj.weight"] *= -1
    save_file(state, path, metadata={"format": "pt"})
    write_manifest(tmp_path / "full")
    assert run(tmp_path / "full", tmp_path / "trained", "--form", "trained") == 2
    assert "does not compute the same as its source" in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["full"]


def test_what_is_there_is_kept(plain, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    assert run(plain, tmp_path / "full") == 2
    assert "exists already" in capsys.readouterr().err


def test_base_models_that_moved_are_noted(plain, tmp_path):
    moved = tmp_path / "llama"
    moved.symlink_to(ASSETS / "tiny_llama")
    output = tmp_path / "trained"
    assert run(plain, output, "--form", "trained", "--lm_model_name_or_path", str(moved)) == 0
    assert json.loads((output / "config.json").read_text())["frozen_from"]["language_model"] == str(moved)


def test_push(plain, tmp_path, monkeypatch, capsys):
    calls = []

    def create(self, repo_id, *, private, exist_ok):
        calls.append((repo_id, private, exist_ok))
        return type("Url", (), {"repo_id": f"me/{repo_id}"})

    def upload(self, *, repo_id, folder_path, commit_message):
        calls.append((repo_id, damage(folder_path), commit_message))
        return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    assert run(plain, tmp_path / "full", "--push_to_hub", "chat", "--private") == 0
    assert calls == [("chat", True, True), ("me/chat", [], "Upload full")]
    assert "uploaded: https://hub/me/chat" in capsys.readouterr().out
