"""Both forms of checkpoint: written, loaded here, loaded elsewhere, and refused when they are broken."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.tiny import logits, moved, two_images
from utils.model import LoraSettings, build_visual_chat
from utils.model.checkpoint import CheckpointError, load_checkpoint, save_full, save_trained_only
from utils.model.mmca_kernels import VARIABLE

ROOT = Path(__file__).parents[3]


def trained(folders, **kwargs):
    """A model some steps away from its base models."""
    torch.manual_seed(3)
    model, processor = build_visual_chat(*folders, **kwargs)
    return moved(model), processor


@pytest.fixture(scope="module")
def model_and_processor(folders):
    return trained(folders)


@pytest.fixture(scope="module")
def full(model_and_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "full"
    save_full(*model_and_processor, folder)
    return folder


@pytest.fixture(scope="module")
def trained_only(model_and_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "trained"
    save_trained_only(*model_and_processor, folder)
    return folder


@pytest.mark.parametrize("form", ["full", "trained_only"])
def test_loads_to_the_same_logits(form, model_and_processor, request):
    folder = request.getfixturevalue(form)
    expected = logits(model_and_processor[0])
    assert torch.equal(logits(load_checkpoint(folder)[0]), expected)
    model = AutoModelForImageTextToText.from_pretrained(folder, device_map="auto")
    processor = AutoProcessor.from_pretrained(folder)
    assert torch.equal(logits(model), expected)
    assert model.generation_config.suppress_tokens == [processor.image_token_id]


@pytest.mark.parametrize("projector_type", ["vit", "perceiver"])
@pytest.mark.parametrize("save", [save_full, save_trained_only])
def test_other_projectors(folders, tmp_path, projector_type, save):
    model, processor = trained(folders, projector_type=projector_type)
    save(model, processor, tmp_path)
    assert torch.equal(logits(load_checkpoint(tmp_path)[0]), logits(model))


@pytest.mark.parametrize("save", [save_full, save_trained_only])
def test_an_image_gate_is_kept_exactly_whatever_the_weights_type(folders, tmp_path, save):
    lora = LoraSettings(lang_dim=2) if save is save_trained_only else None
    model, processor = trained(folders, image_gate="head", lora=lora)
    save(model, processor, tmp_path / "ours")
    loaded, _ = load_checkpoint(tmp_path / "ours")
    assert torch.equal(logits(loaded), logits(model))
    half, _ = load_checkpoint(tmp_path / "ours", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    again = type(model).from_pretrained(tmp_path / "half")
    for each in (half, again):
        assert each.dtype == torch.bfloat16
        for found, wanted in zip(
            each.model.image_gate.parameters(), model.model.image_gate.parameters(), strict=True
        ):
            assert found.dtype == torch.float32 and wanted.any() and torch.equal(found, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        near = logits(loaded)
    torch.testing.assert_close(logits(half).float(), near.float(), atol=0.2, rtol=0.1)
    for attention in ("cross", "causal"):
        with pytest.raises(ValueError, match=f"image_gate head needs attention mmca: under {attention}"):
            load_checkpoint(tmp_path / "ours", attention=attention)
    with pytest.raises(ValueError, match="image_gate head needs attention mmca: under cross"):
        loaded.set_attn_implementation("cross")
    assert torch.equal(logits(loaded), logits(model))


def test_adapters_are_kept_in_one_form_and_merged_in_the_other(folders, tmp_path):
    model, processor = trained(folders, lora=LoraSettings(lang_dim=2, vis_dim=3, alpha=8))
    expected = logits(model)
    save_trained_only(model, processor, tmp_path / "trained")
    save_full(model, processor, tmp_path / "full")
    with_adapters, _ = load_checkpoint(tmp_path / "trained")
    assert torch.equal(logits(with_adapters), expected)
    merged, _ = load_checkpoint(tmp_path / "full")
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(CheckpointError, match="merged adapters"):
        save_trained_only(merged, processor, tmp_path / "again")


@pytest.mark.parametrize("save", [save_full, save_trained_only])
def test_transformers_own_saving_merges_adapters(folders, tmp_path, save):
    """It says nothing of base models: any weight may have learnt since it was loaded."""
    model, processor = trained(folders, lora=LoraSettings(lang_dim=2, vis_dim=3, alpha=8))
    save(model, processor, tmp_path / "ours")
    loaded, _ = load_checkpoint(tmp_path / "ours")
    loaded.save_pretrained(tmp_path / "theirs")
    processor.save_pretrained(tmp_path / "theirs")
    again, _ = load_checkpoint(tmp_path / "theirs")
    torch.testing.assert_close(logits(again), logits(model), atol=1e-4, rtol=1e-4)
    assert again.config.lora is None and again.config.checkpoint_form == "full"
    with pytest.raises(CheckpointError, match="saved in the full form only"):
        save_trained_only(again, processor, tmp_path / "trained")
    assert loaded.config.frozen_from == (None if save is save_full else model.config.frozen_from)


def test_weights_are_sharded(model_and_processor, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.model.checkpoint.SHARD_SIZE", "50KB")
    save_full(*model_and_processor, tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(load_checkpoint(tmp_path)[0]), logits(model_and_processor[0]))
    next(tmp_path.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="model-00002"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
)
@pytest.mark.parametrize("save", [save_full, save_trained_only])
def test_a_file_that_cannot_be_written_is_an_os_error(save, file, model_and_processor, tmp_path):
    (tmp_path / file).mkdir()
    with pytest.raises(OSError):
        save(*model_and_processor, tmp_path)


def test_no_pickle_and_a_card(full, trained_only):
    for folder in (full, trained_only):
        suffixes = {path.suffix for path in folder.iterdir()}
        assert suffixes <= {".json", ".safetensors", ".py", ".md", ".jinja", ".model"}
        assert "from_pretrained" in (folder / "README.md").read_text()


def test_the_code_on_the_card_runs(full, tmp_path, capsys):
    """Both blocks as they stand, for this folder and two pictures."""
    card = (full / "README.md").read_text()
    blocks = [block.split("```")[0] for block in card.split("```python")[1:]]
    code = "\n".join(blocks).replace("this/folder", str(full)).replace("=256", "=4")
    for name in ("first.jpg", "second.jpg"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
        code = code.replace(name, str(tmp_path / name))
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n")


ELSEWHERE = """
import sys, torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers import AutoTokenizer
with_project, folder, expected = sys.argv[1] == "project", sys.argv[2], torch.load(sys.argv[3])
if with_project:
    import utils.model
remote = {{}} if with_project else dict(trust_remote_code=True)
assert with_project or "utils" not in sys.modules
def difference(model):
    with torch.no_grad():
        out = model(**{inputs})
        logits = out.logits if "logits" in out else head(out.last_hidden_state)
    return float((logits - expected).abs().max())
for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModel):
    model = auto.from_pretrained(folder, device_map="auto", **remote)
    head = getattr(model, "lm_head", None) or head
    assert difference(model) == 0, (auto, difference(model))
    model.save_pretrained("again")
    again = auto.from_pretrained("again", **remote)
    assert difference(again) == 0 and again.config.frozen_from is None, auto
processor = AutoProcessor.from_pretrained(folder, **remote)
assert processor.image_seq_length == {image_seq_length}
for tokenizer in (processor.tokenizer, AutoTokenizer.from_pretrained(folder)):
    assert (tokenizer.image_token, tokenizer.image_token_id) == ("<image>", processor.image_token_id)
"""


@pytest.mark.parametrize("form", ["full", "trained_only"])
@pytest.mark.parametrize("where", ["project", "alone"])
def test_loads_in_a_fresh_process(form, where, model_and_processor, tmp_path, request, monkeypatch):
    """From another folder; `alone`: without this project on the path, by the code in the checkpoint."""
    folder = request.getfixturevalue(form)
    inputs = two_images(model_and_processor[0])
    torch.save(inputs, tmp_path / "inputs.pt")
    if where == "alone":  # attention's C++ does not travel: the bits are those of the kernels that do
        monkeypatch.setenv(VARIABLE, "masked")
    torch.save(logits(model_and_processor[0]), tmp_path / "logits.pt")
    length = model_and_processor[1].image_seq_length
    code = ELSEWHERE.format(inputs=f"torch.load({str(tmp_path / 'inputs.pt')!r})", image_seq_length=length)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    paths = [os.environ.get("PYTHONPATH", "")]
    if where == "project":
        paths.insert(0, str(ROOT))
    else:
        paths = [path for path in paths[0].split(os.pathsep) if path and Path(path).resolve() != ROOT]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run(
        [sys.executable, "-c", code, where, str(folder), str(tmp_path / "logits.pt")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_checkpoint_of_an_earlier_version_loads_to_the_same_logits():
    """Written in November 2026, in bfloat16, with a gate and image_layers no_mlp; beside it what it computed then."""
    old = Path(__file__).parent / "old_checkpoint"
    then = torch.load(old / "expected.pt", weights_only=True)
    model, processor = load_checkpoint(old)
    with torch.no_grad():
        now = model.eval()(**then["inputs"]).logits
    torch.testing.assert_close(now, then["logits"], atol=0.05, rtol=0.05)
    assert processor.image_token_id == model.config.image_token_id


TRAVELS = """
    computed_rows configuration_visual_chat generation_visual_chat image_preprocessing loading lora loss
    mmca mmca_layout mmca_masked modeling_visual_chat pretrained_encoders processing_visual_chat projector
    rendering vision
"""


@pytest.mark.parametrize("form", ["full", "trained_only"])
def test_the_code_in_a_checkpoint_is_that_of_the_model_and_no_more(form, request):
    """Of `utils/model`: nothing that builds, checks or saves models, nor the kernels, nor other encoders."""
    folder = request.getfixturevalue(form)
    assert sorted(path.stem for path in folder.glob("*.py")) == TRAVELS.split() and len(TRAVELS.split()) <= 20


def broken(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_model(path: Path) -> None:
    path.write_text('{"model_type": "llama"}')


DAMAGE = [  # form, file, what happens to it, what is said
    *(
        ("full", f"{name}.json", Path.unlink, f"has no {name}.json")
        for name in ("config", "processor_config", "tokenizer_config", "tokenizer")
    ),
    ("full", "model.safetensors", Path.unlink, "model.safetensors"),
    ("trained_only", "trained.safetensors", Path.unlink, "trained.safetensors"),
    ("full", "model.safetensors", cut_short, "not a whole checkpoint"),
    ("full", "config.json", cut_short, r"config\.json is damaged"),
    ("full", "config.json", of_another_model, "a model of type 'llama', not a VisualChat checkpoint"),
    ("full", "", shutil.rmtree, "there is no checkpoint folder"),
]


@pytest.mark.parametrize(("form", "name", "harm", "message"), DAMAGE)
def test_damage_is_told_in_one_line(form, name, harm, message, tmp_path, request):
    folder = broken(request.getfixturevalue(form), tmp_path / "copy")
    harm(folder / name)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("loader", [load_checkpoint, AutoModelForImageTextToText.from_pretrained])
@pytest.mark.parametrize(("form", "name"), [("full", "model"), ("trained_only", "trained")])
def test_missing_unexpected_and_misshapen_keys_are_named(form, name, loader, tmp_path, request):
    folder = broken(request.getfixturevalue(form), tmp_path / "copy")
    weights = load_file(folder / f"{name}.safetensors")
    key = "model.multi_modal_projector.linear.weight"
    without = {other: tensor for other, tensor in weights.items() if other != key}
    save_file(without, folder / f"{name}.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"1 missing: {key}"):
        loader(folder)
    bias = "model.multi_modal_projector.linear.bias"
    for more, message in (
        ({"model.stranger": torch.ones(2)}, r"1 unexpected: model\.stranger"),
        ({bias: torch.zeros(7)}, f"1 mismatched: {bias}"),
    ):
        save_file({**weights, **more}, folder / f"{name}.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            loader(folder)


def test_moved_base_models(trained_only, folders, model_and_processor, tmp_path):
    folder = broken(trained_only, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["frozen_from"]["language_model"] = "/nowhere/llama"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="/nowhere/llama, which does not exist here"):
        load_checkpoint(folder)
    model, _ = load_checkpoint(folder, base_models={"language_model": folders[0]})
    assert torch.equal(logits(model), logits(model_and_processor[0]))
