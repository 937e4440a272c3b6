"""A visual encoder that a module of the user's own registers, as docs/add-an-encoder.md writes it."""

import sys

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    CLIPImageProcessor,
    CLIPVisionConfig,
    PreTrainedConfig,
    ViTConfig,
    ViTModel,
)

from tests.test_docs import python_blocks
from tests.tiny import logits
from utils.model import VisualChatConfig, build_visual_chat, load_checkpoint, register_encoder
from utils.model.checkpoint import CheckpointError, save_full, save_trained_only
from utils.model.pretrained_encoders import load_vision_tower, vision_config_of
from utils.model.vision import FAMILIES
from utils.plugins import load_plugins


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """The page's modules by their class's name; what they register stays within the test."""
    for name in ("modules", "path"):
        monkeypatch.setattr(sys, name, vars(sys)[name].copy())
    for name in ("my_patches", "vit"):  # taken back after the test
        monkeypatch.setitem(FAMILIES, name, None)
    vit, patches = python_blocks("add-an-encoder")
    (tmp_path / "my_vit.py").write_text(vit)
    (tmp_path / "my_patches.py").write_text(patches)
    return tmp_path


def encoder_folder(model, folder):
    model.save_pretrained(folder)
    side = model.config.image_size
    size = {"height": side, "width": side}
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("save", [save_full, save_trained_only])
def test_a_model_of_the_users_own_is_built_saved_and_loaded(plugins, llama_folder, monkeypatch, save):
    load_plugins([str(plugins / "my_patches.py")])
    own = sys.modules["my_patches"]
    torch.manual_seed(0)
    tower = own.PatchModel(own.PatchConfig(image_size=16, patch_size=8, hidden_size=32))
    encoder = encoder_folder(tower, plugins / "encoder")
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(
        load_vision_tower(str(encoder))(pixels).last_hidden_state, tower(pixels).last_hidden_state
    )
    model, processor = build_visual_chat(str(llama_folder), str(encoder))
    assert processor.image_seq_length == 4  # 16 / 8 squared
    expected = logits(model)
    save(model, processor, plugins / "checkpoint")
    loaded, _ = load_checkpoint(plugins / "checkpoint", device_map="auto")
    assert torch.equal(logits(loaded), expected)
    monkeypatch.delitem(FAMILIES, "my_patches")
    with pytest.raises(CheckpointError, match=r"type 'my_patches', .*--plugin"):
        load_checkpoint(plugins / "checkpoint")
    known = CONFIG_MAPPING._extra_content.copy()
    del known["my_patches"]
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", known)  # as where no plugin is given
    for read in (vision_config_of, VisualChatConfig.from_pretrained):
        folder = encoder if read is vision_config_of else plugins / "checkpoint"
        with pytest.raises(ValueError, match=r"'my_patches'[^\n]*--plugin[^\n]*$") as raised:
            read(str(folder))
        assert len(str(raised.value)) < 400


def test_a_name_that_is_taken_is_refused_in_one_line():
    class Taken(CLIPVisionConfig):
        pass

    class OfAnotherModel(PreTrainedConfig):
        model_type = "llama"

    class Ours(PreTrainedConfig):
        model_type = "qwen_vl_vision_model"

    before = dict(FAMILIES)
    for config in (CLIPVisionConfig, Taken, OfAnotherModel, Ours):
        with pytest.raises(
            ValueError, match=f"^there is a model of type '{config.model_type}' already[^\n]*$"
        ):
            register_encoder(config, ViTModel, lambda config: 5)
    assert before == FAMILIES and CONFIG_MAPPING["llama"] is not OfAnotherModel


def test_a_class_of_transformers_needs_one_line(plugins, llama_folder):
    load_plugins([str(plugins / "my_vit.py")])
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    encoder = encoder_folder(ViTModel(config), plugins / "encoder")
    model, processor = build_visual_chat(str(llama_folder), str(encoder))
    assert processor.image_seq_length == 5 and logits(model).isfinite().all()
