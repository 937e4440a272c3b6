"""A model that begins with what an earlier training learnt."""

import pytest
import torch

from tests.tiny import moved
from training.model import init_from
from utils.model import LoraSettings, build_visual_chat
from utils.model.checkpoint import CheckpointError, save_full, save_trained_only

LORA = LoraSettings(lang_dim=2)


@pytest.fixture(scope="module")
def folders(llama_folder, clip_folder) -> tuple[str, str]:
    return str(llama_folder), str(clip_folder)


def trained(folders, **kwargs):
    torch.manual_seed(3)
    model, processor = build_visual_chat(*folders, **kwargs)
    return moved(model), processor


def learning(model) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("save", [save_full, save_trained_only])
def test_projector_and_embedding_come_over_from_either_form(folders, tmp_path, save):
    earlier, processor = trained(folders)
    save(earlier, processor, tmp_path / "earlier")
    model, _ = build_visual_chat(*folders, lora=LORA)
    init_from(model, tmp_path / "earlier")
    for name, parameter in learning(earlier).items():
        torch.testing.assert_close(learning(model)[name], parameter, rtol=0, atol=0)
    ups = [parameter for name, parameter in learning(model).items() if ".lora_B." in name]
    assert ups and not any(parameter.any() for parameter in ups)  # adapters stay as new


@pytest.mark.parametrize(
    ("earlier", "factor"),
    [({"attention": "mmca"}, 1.0), ({"attention": "causal"}, 0.0), ({"image_gate": "head"}, None)],
)
def test_a_gate_begins_as_what_was_computed_before(folders, tmp_path, earlier, factor):
    earlier, processor = trained(folders, **earlier)
    save_trained_only(earlier, processor, tmp_path)
    model, _ = build_visual_chat(*folders, image_gate="head")
    init_from(model, tmp_path)
    for name, factors in model.model.image_gate.named_parameters():
        learnt = earlier.model.image_gate
        wanted = learnt.get_parameter(name) if learnt else torch.full_like(factors, factor)
        assert torch.equal(factors, wanted) and factors.requires_grad


def test_a_gate_that_the_run_has_not_is_refused(folders, tmp_path):
    save_full(*trained(folders, image_gate="head"), tmp_path)
    model, _ = build_visual_chat(*folders)
    with pytest.raises(
        CheckpointError, match="has learnt an image gate that this run has not; give --image_gate"
    ):
        init_from(model, tmp_path)


@pytest.mark.parametrize("now", [{"image_layers": "none"}, {"image_summary": "mean"}])
def test_another_way_of_images_through_the_decoder_is_refused(folders, tmp_path, now):
    save_trained_only(*trained(folders), tmp_path)
    model, _ = build_visual_chat(*folders, **now)
    with pytest.raises(CheckpointError, match="with --image_layers full --image_summary none, this run has"):
        init_from(model, tmp_path)


@pytest.mark.parametrize(
    "save, wanted, message",
    [
        (save_full, {"lora": LORA}, "merged into its decoder"),
        (save_trained_only, {}, "adapters that this run has not"),
        (save_trained_only, {"lora": LoraSettings(lang_dim=3)}, "of the same decoder"),
        (save_trained_only, {"lora": LORA, "projector_type": "vit"}, "its projector is linear"),
    ],
)
def test_what_does_not_fit_is_refused(folders, tmp_path, save, wanted, message):
    save(*trained(folders, lora=LORA), tmp_path)
    model, _ = build_visual_chat(*folders, **wanted)
    with pytest.raises(CheckpointError, match=message):
        init_from(model, tmp_path)


def test_a_folder_that_is_no_checkpoint_is_refused(folders, tmp_path):
    model, _ = build_visual_chat(*folders)
    with pytest.raises(CheckpointError, match=r"no config\.json; give a checkpoint"):
        init_from(model, tmp_path)
    trained_model, processor = trained(folders)
    save_trained_only(trained_model, processor, tmp_path)
    (tmp_path / "trained.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="is damaged"):
        init_from(model, tmp_path)
    (tmp_path / "trained.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        init_from(model, tmp_path)
