"""Visual encoders built by open_clip, of any architecture it knows, behind transformers' interface.

What comes out is the last hidden state before pooling: of open_clip's own ViTs with the class token and before
the last layer norm, as transformers' CLIP gives it; of timm's models their unpooled features; of the ResNets
the last feature map, a token for each place.
"""

import copy
import json
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_vision import OpenClipVisionConfig
from .linear_attention import MultiHeadAttention

_NO_REGULARISATION = {"patch_dropout": 0.0, "timm_drop": 0.0, "timm_drop_path": None}


class OpenClipVisionModel(PreTrainedModel):
    """Pixels [N, 3, H, W] -> `last_hidden_state` [N, S, D]; `trunk` is what open_clip built."""

    config_class = OpenClipVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["OpenClipVisionModel"]  # noqa: RUF012 (its parts are open_clip's: kept on one device)

    def __init__(self, config: OpenClipVisionConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.trunk = _trunk(config)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutput:
        if hasattr(self.trunk, "set_grad_checkpointing"):
            self.trunk.set_grad_checkpointing(self.gradient_checkpointing and self.training)
        features = self.trunk(pixel_values)
        if features.ndim == 4:  # a feature map [N, D, rows, columns]
            features = features.flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=features)

    def train(self, mode: bool = True) -> "OpenClipVisionModel":
        """The trunk stays as it was pretrained: batch norms keep their statistics."""
        super().train(mode)
        self.trunk.eval()
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """open_clip has initialised what it built."""


def describe(model_cfg: dict[str, Any]) -> OpenClipVisionConfig:
    """The configuration of an encoder from open_clip's description of a model ("model_cfg").

    Tokens and width are measured: open_clip builds the encoder on the meta device and a picture without data
    goes through. Raises `ValueError` where images are not square.
    """
    return copy.deepcopy(_measured(json.dumps(model_cfg)))


@lru_cache(maxsize=8)
def _measured(model_cfg_json: str) -> OpenClipVisionConfig:
    model_cfg = json.loads(model_cfg_json)
    vision_cfg = dict(model_cfg["vision_cfg"])
    size = vision_cfg.get("image_size", 224)
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"the encoder takes images of {size}; only square ones are supported")
    config = OpenClipVisionConfig(
        vision_cfg=vision_cfg,
        embed_dim=model_cfg["embed_dim"],
        quick_gelu=model_cfg.get("quick_gelu", False),
        image_size=sides.pop(),
        patch_size=vision_cfg.get("patch_size"),
    )
    with torch.device("meta"), torch.no_grad():
        model = OpenClipVisionModel(config)
        tokens = model(torch.zeros(1, 3, config.image_size, config.image_size)).last_hidden_state
    config.sequence_length, config.hidden_size = tokens.shape[1:]
    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    config.num_attention_heads = attentions[0].heads if attentions else max(config.hidden_size // 64, 1)
    config.num_hidden_layers = len(attentions) or 1
    config.intermediate_size = int(config.hidden_size * vision_cfg.get("mlp_ratio", 4.0))
    config.hidden_act = "quick_gelu" if config.quick_gelu else "gelu"
    return config


def _trunk(config: OpenClipVisionConfig) -> nn.Module:
    """What open_clip builds, without pooling and projection, its attention in linear layers."""
    try:
        from open_clip.model import CLIPVisionCfg, _build_vision_tower
    except ImportError as error:
        raise ImportError(
            "this encoder is built by the package open_clip: pip install open_clip_torch"
        ) from error
    settings = CLIPVisionCfg(**{**config.vision_cfg, **_NO_REGULARISATION, "timm_model_pretrained": False})
    trunk = _without_pooling(_build_vision_tower(config.embed_dim, settings, config.quick_gelu))
    for module in list(trunk.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MultiheadAttention):
                if not child.batch_first:
                    raise ValueError(f"{name} of {type(module).__name__} takes the batch second; use another")
                setattr(module, name, MultiHeadAttention(child.embed_dim, child.num_heads))
    return trunk


def _without_pooling(trunk: nn.Module) -> nn.Module:
    """The same weights up to the last hidden state, by each architecture's own switches."""
    if hasattr(trunk, "trunk"):  # open_clip's adapter around a model of timm
        trunk.trunk.reset_classifier(0, "")
        return trunk.trunk
    if hasattr(trunk, "transformer"):
        trunk.proj = trunk.attn_pool = None
        trunk.ln_post = nn.Identity()
        trunk.pool_type, trunk.output_tokens, trunk.final_ln_after_pool = "none", False, False
        return trunk
    if hasattr(trunk, "attnpool"):
        trunk.attnpool = nn.Identity()
        return trunk
    raise ValueError(f"open_clip built a {type(trunk).__name__}, of which we do not know the pooling")
