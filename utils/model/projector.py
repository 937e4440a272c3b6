"""Projectors: from the encoder's hidden states [N, S, Dv] to the decoder's width [N, S', Dt]; and what encoders of this
project share with them, multi-head attention and positions on a square grid.

Each initialises itself when it is made, so a projector works the same alone, inside a new model, and under
DeepSpeed's partitioned construction.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, PreTrainedConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

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
        width = vision_family(vision_config).width(vision_config)
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
        width = vision_family(vision_config).width(vision_config)
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
    return LinearProjector(vision_family(vision_config).width(vision_config), text_width)


def image_seq_length(projector_type: str, vision_config: PreTrainedConfig) -> int:
    """How many tokens of the decoder one image takes."""
    if projector_type == "perceiver":
        return _GRID**2
    return vision_family(vision_config).sequence_length(vision_config)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention of `heads` heads, all of one width in and out, made of four linear layers.

    torch's own `nn.MultiheadAttention` uses the weights of its layers without calling them, where adapters would not
    reach them. Nor can it be made in parts: it initialises again what ZeRO-3 has already shared out.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be shared by {heads} attention heads")
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Queries [N, Q, D], keys and values [N, K, D] -> ([N, Q, D], None): the call and the return of torch's
        own class, of which this one takes the place; weights are never returned.
        """
        parts = (
            projection(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, H, S, D / H]
            for projection, states in zip(
                (self.q_proj, self.k_proj, self.v_proj), (query, key, value), strict=True
            )
        )
        out = F.scaled_dot_product_attention(*parts, attn_mask=attn_mask)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def sine_cosine_grid(side: int, width: int) -> torch.Tensor:
    """Fixed positions of a square grid, [side * side, width]: half of the width for rows, half for columns.

    Source: He et al., "Masked autoencoders are scalable vision learners", 2021, after Vaswani et al., 2017.
    """
    if width % 4:
        raise ValueError(f"the encoder is {width} wide; 2-D sine-cosine positions need a multiple of 4")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # [side, width / 4]
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    rows = axis[:, None, :].expand(side, side, -1)
    columns = axis[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width)
