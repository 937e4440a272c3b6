"""Encoders of open_clip: the same numbers as open_clip's own, from every form of name."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModel

from utils.model.building import load_image_processor
from utils.model.open_clip_vision import OpenClipVisionModel, describe, find_open_clip
from utils.model.pretrained_encoders import load_vision_tower
from utils.model.vision import encode_images

PIXELS = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(3))


def test_equals_open_clips_own(open_clip_writer, tmp_path):
    theirs = open_clip_writer(tmp_path).visual
    tower = load_vision_tower(str(tmp_path))
    hidden = encode_images(tower, PIXELS)
    assert hidden.shape == (3, 5, 52)
    with torch.no_grad():
        out = theirs.forward_intermediates(
            PIXELS, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        whole = torch.cat([out["image_intermediates_prefix"][0], out["image_intermediates"][0]], dim=1)
        torch.testing.assert_close(hidden, whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs.ln_post(hidden[:, 0]) @ theirs.proj, theirs(PIXELS))


def test_one_folder_in_both_forms(open_clip_folder, clip_folder, tmp_path):
    """As CLIP-ViT-bigG-14-laion2B-39B-b160k on the hub: transformers' form, unless open_clip's is asked for."""
    for folder in (open_clip_folder, clip_folder):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    towers = [load_vision_tower(path) for path in (str(tmp_path), f"local-dir:{tmp_path}")]
    assert [type(tower) for tower in towers] == [CLIPVisionModel, OpenClipVisionModel]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the hub; returns where the files of laion/CLIP-tiny are kept in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--laion--CLIP-tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


def test_hub_names(open_clip_folder, clip_folder, hub):
    shutil.copytree(open_clip_folder, hub)
    for name in ("laion/CLIP-tiny", "hf-hub:laion/CLIP-tiny"):
        assert isinstance(load_vision_tower(name), OpenClipVisionModel)
        assert load_image_processor(name).crop_size["height"] == 28
    shutil.copytree(clip_folder, hub, dirs_exist_ok=True)
    assert isinstance(load_vision_tower("laion/CLIP-tiny"), CLIPVisionModel)
    assert isinstance(load_vision_tower("hf-hub:laion/CLIP-tiny"), OpenClipVisionModel)


def test_a_name_that_nobody_has(hub):
    with pytest.raises(
        ValueError, match=r"laion/CLIP-none: there is no such folder, and the hub has no encoder"
    ):
        load_vision_tower("laion/CLIP-none")
    with pytest.raises(ValueError, match=r"hf-hub:laion/CLIP-none: there is no open_clip_config.json"):
        load_vision_tower("hf-hub:laion/CLIP-none")


def test_pickled_weights_as_training_leaves_them(open_clip_folder, tmp_path):
    weights = load_file(open_clip_folder / "open_clip_model.safetensors")
    shutil.copy(open_clip_folder / "open_clip_config.json", tmp_path)
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": each for name, each in weights.items()}}
    torch.save(wrapped, tmp_path / "open_clip_pytorch_model.bin")
    ours, theirs = (load_vision_tower(str(folder)).state_dict() for folder in (tmp_path, open_clip_folder))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_missing_weights_are_named(open_clip_folder, tmp_path):
    weights = load_file(open_clip_folder / "open_clip_model.safetensors")
    shutil.copy(open_clip_folder / "open_clip_config.json", tmp_path)
    with pytest.raises(ValueError, match=r"has no weights of open_clip: none of open_clip_model.safetensors"):
        load_vision_tower(str(tmp_path))
    del weights["visual.transformer.resblocks.1.mlp.c_fc.bias"]
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"lacks 1 weights .*: trunk.transformer.resblocks.1.mlp.c_fc.bias"):
        load_vision_tower(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "tokens", "width", "heads"),
    [
        ("ViT-bigG-14", 257, 1664, 16),
        ("ViT-H-14-378-quickgelu", 27**2 + 1, 1280, 16),
        ("RN50", 49, 2048, 32),
        ("convnext_base", 49, 1024, 16),
        ("coca_ViT-B-32", 50, 768, 12),
    ],
)
def test_architectures_are_measured_without_weights(name, tokens, width, heads):
    import open_clip

    config = describe(open_clip.get_model_config(name))
    assert (config.sequence_length, config.hidden_size, config.num_attention_heads) == (tokens, width, heads)
    assert config.hidden_act == ("quick_gelu" if "quickgelu" in name else "gelu")


def test_an_architecture_needs_the_tag_of_its_weights():
    found = find_open_clip("ViT-bigG-14/laion2b_s39b_b160k")
    assert found.model_cfg["vision_cfg"]["layers"] == 48
    assert find_open_clip("ViT-B-32/openai").model_cfg["quick_gelu"]
    with pytest.raises(ValueError, match=r"say which weights .*: ViT-bigG-14/laion2b_s39b_b160k"):
        find_open_clip("ViT-bigG-14")


@pytest.mark.parametrize("how", ["shortest", "squash"])
def test_preprocessing_is_open_clips(open_clip_writer, tmp_path, how):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    settings = dict(size=28, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize_mode=how)
    open_clip_writer(tmp_path, **settings)
    x, y = np.meshgrid(np.arange(90), np.arange(60))
    picture = Image.fromarray(np.stack([x * 2, y * 4, x + y], axis=-1).astype(np.uint8))
    theirs = image_transform_v2(PreprocessCfg(**settings), is_train=False)(picture)
    ours = load_image_processor(str(tmp_path))(picture, return_tensors="pt")["pixel_values"][0]
    assert (ours - theirs).abs().max() < 2 / 255 / 0.2  # two steps of a byte


def test_preprocessing_that_we_do_not_have_is_refused(open_clip_writer, tmp_path):
    open_clip_writer(tmp_path, resize_mode="longest")
    with pytest.raises(ValueError, match="is preprocessed by resize_mode 'longest'"):
        load_image_processor(str(tmp_path))


def test_images_that_are_not_square_are_refused(open_clip_config):
    open_clip_config["vision_cfg"]["image_size"] = [28, 56]
    with pytest.raises(ValueError, match=r"images of \[28, 56\]; only square ones"):
        describe(open_clip_config)


def test_dropout_of_patches_and_batch_norm_stay_as_they_were_pretrained(open_clip_config):
    """A frozen encoder in a model that trains gives what it gives in evaluation."""
    import open_clip

    open_clip_config["vision_cfg"]["patch_dropout"] = 0.5
    resnet = open_clip.get_model_config("RN50")
    resnet["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
    for model_cfg in (open_clip_config, resnet):
        config = describe(model_cfg)
        tower = OpenClipVisionModel(config).train()
        pixels = torch.randn(2, 3, config.image_size, config.image_size)
        with torch.no_grad():
            first = tower(pixels).last_hidden_state
            assert first.shape == (2, config.sequence_length, config.hidden_size)
            assert torch.equal(tower.eval()(pixels).last_hidden_state, first)


def test_a_folder_of_nothing_says_what_to_give(tmp_path):
    (tmp_path / "README.md").write_text("empty")
    with pytest.raises(ValueError, match=r"holds no encoder .*no open_clip_config.json"):
        load_vision_tower(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base"}))  # as timm's
    with pytest.raises(ValueError, match="holds no encoder"):
        load_vision_tower(str(tmp_path))
    with pytest.raises(ValueError, match=r"local-dir:.*: there is no open_clip_config.json"):
        load_vision_tower(f"local-dir:{tmp_path}")
