"""Encoders behind one interface."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BertConfig,
    CLIPVisionConfig,
)

from tests import tiny
from utils.model.building import load_image_processor
from utils.model.pretrained_encoders import load_vision_tower, vision_config_of
from utils.model.projector import PerceiverProjector, build_projector, image_seq_length, sine_cosine_grid
from utils.model.vision import encode_images, image_size, vision_family

SHAPE = dict(**tiny.SHAPE, image_size=16, patch_size=8)


@pytest.mark.parametrize(
    "name, others, tokens", [("dinov2", 1, 4), ("dinov3", 3, 4), ("siglip2_naflex", 0, 9)]
)
@pytest.mark.parametrize("learning", [False, True], ids=["frozen", "learning"])
def test_patches_are_those_of_transformers(name, others, tokens, learning, encoder_folders):
    """Of class and register tokens, that come first, none is left; in training there is nothing at random."""
    folder = str(encoder_folders[name])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    with torch.no_grad():
        own = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
        expected = AutoModel.from_pretrained(folder)(**own).last_hidden_state[:, others:]
    tower, config = load_vision_tower(folder).train(learning), vision_config_of(folder)
    pixels = load_image_processor(folder)(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, image_size(config), image_size(config))
    assert vision_family(config).sequence_length(config) == tokens
    with torch.no_grad():
        found = encode_images(tower, pixels.expand(2, -1, -1, -1))
    assert found.shape == (2, tokens, 32)
    torch.testing.assert_close(found, expected.expand(2, -1, -1), atol=1e-6, rtol=1e-5)


def test_clip_l_takes_257_tokens():
    config = CLIPVisionConfig(hidden_size=1024, num_attention_heads=16, image_size=224, patch_size=14)
    assert image_seq_length("linear", config) == image_seq_length("vit", config) == 257
    assert image_seq_length("perceiver", config) == 256


def test_an_unknown_encoder_names_the_known(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'bert'; supported are clip_vision_model, siglip_vision_model"):
        vision_config_of(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["clip", "siglip", "open_clip", "qwen_vl", "siglip2_naflex", "dinov2", "dinov3"]
)
@pytest.mark.parametrize("projector_type", ["linear", "vit", "perceiver"])
def test_projectors_give_the_decoders_width_and_the_promised_length(projector_type, name, encoder_folders):
    folder = str(encoder_folders[name])
    tower, vision_config = load_vision_tower(folder), vision_config_of(folder)
    side = image_size(vision_config)
    projector = build_projector(projector_type, vision_config, 48)
    out = projector(encode_images(tower, torch.randn(2, 3, side, side)))
    assert out.shape == (2, image_seq_length(projector_type, vision_config), 48)
    torch.testing.assert_close(out.mean(-1), torch.zeros(out.shape[:2]), atol=1e-5, rtol=0)  # after LayerNorm
    out.square().mean().backward()
    assert all(parameter.grad is not None for parameter in projector.parameters())


def test_the_perceivers_queries_differ_by_place():
    projector = PerceiverProjector(CLIPVisionConfig(**SHAPE), 48)
    with torch.no_grad():
        projector.queries.zero_()
    out = projector(torch.randn(1, 5, 32))[0]
    assert torch.cdist(out, out).fill_diagonal_(1.0).min() > 1e-6


def test_positions_by_hand():
    """Width 4: sine and cosine of the row, then of the column."""
    grid = sine_cosine_grid(2, 4)
    sine, cosine = torch.tensor(1.0).double().sin(), torch.tensor(1.0).double().cos()
    expected = [[0, 1, 0, 1], [0, 1, sine, cosine], [sine, cosine, 0, 1], [sine, cosine, sine, cosine]]
    torch.testing.assert_close(grid, torch.tensor(expected, dtype=torch.float64))
