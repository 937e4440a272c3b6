"""Qwen-VL's visual encoder: a ViT without class token, and a resampler that reads its tokens by 256 queries.

Places of the layer norms, positions and shapes are those of the published encoder (Bai et al., "Qwen-VL", 2023).
Its layers are CLIP's, so transformers' own class serves; `helper/extract_qwen_vl.py` turns the published weights
into a folder that this class loads.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder

from .configuration_visual_chat import QwenVisionConfig
from .projector import MultiHeadAttention, sine_cosine_grid
from .vision import FAMILIES, VisionFamily


class PatchEmbeddings(nn.Module):
    """Patches with learned positions, normalised: pixels [N, 3, H, W] -> [N, rows * columns, D]."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patches = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch, bias=False)
        self.positions = nn.Parameter(torch.empty(config.position_grid**2, width))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """The embeddings, and the grid (rows, columns) on which they stand."""
        patches = self.patches(pixel_values)  # [N, D, rows, columns]
        grid = (patches.shape[2], patches.shape[3])
        return self.norm(patches.flatten(2).transpose(1, 2) + interpolated(self.positions, grid)), grid


class Resampler(nn.Module):
    """Learned queries on a grid read all tokens by one cross-attention: [N, S, D] -> [N, queries, output].

    Both sides carry the same fixed positions, interpolated to the tokens' grid; the values carry none.
    """

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        width, queries = config.output_size, config.query_grid**2
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.positions = nn.Parameter(torch.empty(queries, width), requires_grad=False)
        self.project = nn.Linear(config.hidden_size, width, bias=False)
        self.norm_tokens = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.norm_queries = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = MultiHeadAttention(width, config.resampler_heads)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        tokens = self.norm_tokens(self.project(tokens))
        queries = (self.norm_queries(self.queries) + self.positions).expand(tokens.shape[0], -1, -1)
        read, _ = self.attention(queries, tokens + interpolated(self.positions, grid), tokens)
        return self.norm(read)


class QwenVisionModel(PreTrainedModel):
    """Pixels [N, 3, H, W] -> `last_hidden_state` [N, query_grid^2, output_size]."""

    config_class = QwenVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PatchEmbeddings", "CLIPEncoderLayer", "Resampler"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = PatchEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.resampler = Resampler(config)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutput:
        """Any size of image will do, but the encoder was trained at `config.image_size`."""
        tokens, grid = self.embeddings(pixel_values)
        tokens = self.encoder(inputs_embeds=tokens).last_hidden_state  # [N, S, D]
        return BaseModelOutput(last_hidden_state=self.resampler(tokens, grid))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PatchEmbeddings):
            init.normal_(module.positions, std=self.config.hidden_size**-0.5)
        elif isinstance(module, Resampler):
            init.normal_(module.queries, std=self.config.initializer_range)
            side, width = self.config.query_grid, self.config.output_size
            fixed = (
                sine_cosine_grid(side, width).view(side, side, width).transpose(0, 1)
            )  # columns come first
            init.copy_(module.positions, fixed.reshape(side * side, width).to(module.positions.dtype))


def interpolated(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Positions [s * s, D] stored for a square grid -> [rows * columns, D] for `grid`, bicubic in float32."""
    side = math.isqrt(positions.shape[0])
    if grid == (side, side):
        return positions
    stored = positions.float().view(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, s, s]
    resized = F.interpolate(stored, size=grid, mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(positions.dtype)


FAMILIES[QwenVisionConfig.model_type] = VisionFamily(
    QwenVisionModel, lambda config: config.query_grid**2, lambda config: config.output_size
)
