"""Projectors: from the encoder's hidden states [N, S, Dv] to the decoder's width [N, S', Dt].

Each initialises itself when it is made, so a projector works the same alone, inside a new model, and under
DeepSpeed's partitioned construction.
"""

import math

import torch
from torch import nn
from transformers import CLIPVisionConfig, PreTrainedConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from .attention_blocks import MultiHeadAttention, sine_cosine_grid
from .vision import vision_family

_NORM_EPS = 1e-12
_GRID = 16  # the perceiver's queries stand on a 16 x 16 grid


class LinearProjector(nn.Module):
    """A linear map and a LayerNorm."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width, text_width)
        self.norm = nn.LayerNorm(text_width, eps=_NORM_EPS)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(features))


class VitProjector(nn.Module):
    """One more encoder layer, that learns, before the linear projector."""

    def __init__(self, vision_config: PreTrainedConfig, text_width: int) -> None:
        super().__init__()
        width = encoder_width(vision_config)
        layer_config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=vision_config.intermediate_size,
            num_attention_heads=vision_config.num_attention_heads,
            hidden_act=vision_config.hidden_act,
            layer_norm_eps=vision_config.layer_norm_eps,
            attn_implementation="sdpa",
        )
        self.layer = CLIPEncoderLayer(layer_config)
        self.projector = LinearProjector(width, text_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.projector(self.layer(features, attention_mask=None))


class PerceiverProjector(nn.Module):
    """256 learned queries on a 16 x 16 grid read the encoder's tokens by one cross-attention.

    The queries carry 2-D sine-cosine positions; so do the keys of encoders whose tokens stand on a square
    grid (a leading class token has position zero).
    """

    def __init__(self, vision_config: PreTrainedConfig, text_width: int) -> None:
        super().__init__()
        width = encoder_width(vision_config)
        self.queries = nn.Parameter(torch.empty(_GRID**2, width).normal_(std=0.02))
        self.norm_queries = nn.LayerNorm(width)
        self.norm_features = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, vision_config.num_attention_heads)
        self.projector = LinearProjector(width, text_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = features.shape
        features = self.norm_features(features)
        grid = math.isqrt(tokens)
        positions = sine_cosine_grid(grid, width).to(features)
        positions = nn.functional.pad(positions, (0, 0, tokens - grid**2, 0))  # [S, Dv]
        queries = self.norm_queries(self.queries) + sine_cosine_grid(_GRID, width).to(features)
        queries = queries.expand(batch, -1, -1)  # [N, 256, Dv]
        read, _ = self.attention(queries, features + positions, features)
        return self.projector(read)


def build_projector(projector_type: str, vision_config: PreTrainedConfig, text_width: int) -> nn.Module:
    """The projector named in a configuration, freshly initialised."""
    if projector_type == "perceiver":
        return PerceiverProjector(vision_config, text_width)
    if projector_type == "vit":
        return VitProjector(vision_config, text_width)
    return LinearProjector(encoder_width(vision_config), text_width)


def encoder_width(vision_config: PreTrainedConfig) -> int:
    """How wide the tokens are that the encoder gives."""
    return vision_family(vision_config).width(vision_config)


def image_seq_length(projector_type: str, vision_config: PreTrainedConfig) -> int:
    """How many tokens of the decoder one image takes."""
    if projector_type == "perceiver":
        return _GRID**2
    return vision_family(vision_config).sequence_length(vision_config)
