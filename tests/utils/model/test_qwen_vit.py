"""Qwen-VL's encoder as a model of transformers; its numbers are held to the published equations in
tests/helper/test_extract_qwen_vl.py."""

import pytest
import torch

from utils.model import QwenVisionConfig
from utils.model.open_clip_vision import split_in_projections
from utils.model.projector import MultiHeadAttention, image_seq_length
from utils.model.qwen_vit import QwenVisionModel
from utils.model.vision import vision_family

TINY = dict(
    image_size=16,
    patch_size=4,
    hidden_size=24,
    intermediate_size=118,
    num_hidden_layers=3,
    num_attention_heads=4,
    position_grid=2,
    query_grid=3,
    output_size=32,
    resampler_heads=2,
)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return QwenVisionModel._from_config(QwenVisionConfig(**TINY))


def test_the_published_encoder_has_256_tokens_of_width_4096():
    """Without weights: 1.9 billion parameters, of which the resampler has 76 million."""
    config = QwenVisionConfig()
    with torch.device("meta"):
        tower = QwenVisionModel(config)
        hidden = tower(torch.zeros(2, 3, 448, 448)).last_hidden_state
    assert hidden.shape == (2, 256, 4096)
    assert vision_family(config).sequence_length(config) == image_seq_length("linear", config) == 256
    assert sum(parameter.numel() for parameter in tower.parameters()) == 1_918_833_408
    assert sum(parameter.numel() for parameter in tower.resampler.parameters()) == 76_062_720


def test_attention_in_linear_layers_is_torchs_own():
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(24, 3, batch_first=True).double()
    torch.nn.init.normal_(theirs.in_proj_bias)
    ours = MultiHeadAttention(24, 3).double()
    ours.load_state_dict(split_in_projections(theirs.state_dict()))
    query, key, value = (torch.randn(2, tokens, 24, dtype=torch.float64) for tokens in (5, 7, 7))
    torch.testing.assert_close(ours(query, key, value)[0], theirs(query, key, value)[0])
    with pytest.raises(ValueError, match="a width of 24 cannot be shared by 5 attention heads"):
        MultiHeadAttention(24, 5)


def test_fresh_weights_are_finite_and_its_fixed_positions_do_not_learn(tower):
    assert all(tensor.isfinite().all() for tensor in tower.state_dict().values())
    assert not tower.resampler.positions.requires_grad
    angles = torch.tensor([0.0, 1.0, 2.0])
    # Half of the width for columns, then half for rows; the first frequency is 1.
    torch.testing.assert_close(tower.resampler.positions.view(3, 3, 32)[0, :, 0], angles.sin())
    torch.testing.assert_close(tower.resampler.positions.view(3, 3, 32)[:, 0, 16], angles.sin())
