"""Configurations of the encoders that transformers has none for: Qwen-VL's, and whatever open_clip builds."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class QwenVisionConfig(PreTrainedConfig):
    """Qwen-VL's visual encoder: a ViT as wide and deep as OpenCLIP's bigG/14, then a resampler.

    The names without prefix describe the ViT. position_grid: the side of the grid for which positions are
    stored; those of any other grid are interpolated. query_grid: the resampler gives query_grid^2 tokens, each
    output_size wide, and attends with resampler_heads heads.
    The defaults are the published encoder's; Bai et al., "Qwen-VL", 2023, and its config.json.
    """

    model_type = "qwen_vl_vision_model"
    base_config_key = "vision_config"

    image_size: int = 448
    patch_size: int = 14
    num_channels: int = 3
    hidden_size: int = 1664
    intermediate_size: int = 8192
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    position_grid: int = 16
    query_grid: int = 16
    output_size: int = 4096
    resampler_heads: int = 32


class OpenClipVisionConfig(PreTrainedConfig):
    """A visual encoder of open_clip.

    vision_cfg, embed_dim, quick_gelu: as in open_clip's own description of the model, from which open_clip
    builds it. The rest says what comes out, and is found by `open_clip_vision.describe`: sequence_length tokens
    of hidden_size for a square image of image_size; num_attention_heads, intermediate_size and hidden_act serve
    a projector that adds one more layer of the encoder's kind.
    """

    model_type = "open_clip_vision_model"
    base_config_key = "vision_config"

    vision_cfg: dict | None = None
    embed_dim: int = 512
    quick_gelu: bool = False
    image_size: int = 224
    patch_size: int | None = None
    sequence_length: int = 257
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5


OWN_VISION_CONFIGS = {config.model_type: config for config in (QwenVisionConfig, OpenClipVisionConfig)}


def config_from_dict(fields: dict[str, Any], default: str | None = None) -> PreTrainedConfig:
    """A configuration from its fields, of our own kinds or one that transformers knows by `model_type`."""
    fields = dict(fields)
    model_type = fields.pop("model_type", default)
    if model_type in OWN_VISION_CONFIGS:
        return OWN_VISION_CONFIGS[model_type](**fields)
    return AutoConfig.for_model(model_type, **fields)
