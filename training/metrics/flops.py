"""What a training step costs in floating-point operations, and what share of the hardware's peak it uses (MFU).

Only work that the mathematics asks for counts: what gradient checkpointing computes again does not. The
derivation is in docs/training.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from utils.model.computed_rows import parts_of
from utils.model.decoder_check import outside_zero3
from utils.model.freezing import elements
from utils.model.lora import is_lora
from utils.model.vision import encode_images, image_size, vision_family

_ATTENTION_PASSES = 3.5
"""Attention's forward and backward pass, in forwards: 2 matrix products there; 4 here, and the scores again,
which no fused kernel keeps."""


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of a training step for each unit of what its batches hold."""

    per_token: float  # the decoder's matrices
    per_image_token: float  # those of them that an image token goes through
    per_pair: float  # attention, for each key that a query sees, over all heads and layers
    per_image: float  # the encoder
    per_supervised_token: float  # the head

    @classmethod
    def of(cls, model: PreTrainedModel) -> "StepFlops":
        """Count a visual chat model, whole or partitioned over processes."""
        parts, text = model.model, model.config.text_config
        head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        per_token = per_pair = left_out = 0.0
        passes_on = any(_learns(each) for each in _before_the_layers(model))
        for layer in getattr(parts.language_model, "layers", None) or [parts.language_model]:
            passes_on = passes_on or _learns(layer)
            per_token += _matrices(layer, passes_on)
            per_pair += (_ATTENTION_PASSES if passes_on else 1) * 4 * text.num_attention_heads * head_size
            left_out += _left_out(layer, model.config.image_layers, passes_on)
        return cls(
            per_token=per_token,
            per_image_token=per_token - left_out,
            per_pair=per_pair,
            per_image=encoder_forward(model.config.vision_config) * _encoder_passes(parts.vision_tower),
            per_supervised_token=_matrices(model.lm_head, passes_on),
        )

    def total(
        self,
        tokens: float,
        pairs: float,
        images: float,
        supervised_tokens: float,
        image_tokens: float,
    ) -> float:
        """The operations of a step, or of several; images: those that are encoded. tokens: image_tokens among them."""
        return (
            self.per_token * (tokens - image_tokens)
            + self.per_image_token * image_tokens
            + self.per_pair * pairs
            + self.per_image * images
            + self.per_supervised_token * supervised_tokens
        )


def encoder_forward(config: PreTrainedConfig) -> int:
    """The operations of an encoder's forward pass over one image, counted on a copy without weights."""
    with outside_zero3(), torch.device("meta"):
        tower = vision_family(config).model._from_config(config)
        pixels = torch.zeros(1, 3, *2 * (image_size(config),))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), _PlainAttention():
        encode_images(tower, pixels)
    return counter.get_total_flops()


class _PlainAttention(TorchFunctionMode):
    """Attention in two matrix products: not every torch counts its fused kernels."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            return query @ key.transpose(-2, -1) @ value
        return function(*args, **(kwargs or {}))


def visible_pairs(
    attention: str, positions: torch.Tensor, kinds: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """How many keys the queries of a batch see together: a scalar on the batch's device.

    Args:
        attention: mmca, cross or causal. positions: [B, S], of a token in its conversation. kinds: [B, S], 1 for
        image tokens. real: [B, S], false where padded.
    """
    seen = positions + 1
    if attention == "causal":
        return (seen * real).sum()
    text = real & (kinds == 0)
    pairs = (seen * text).sum()  # an image token looks at nothing but itself: under mmca nothing to compute
    return pairs if attention == "mmca" else pairs + (real & (kinds == 1)).sum()


def _before_the_layers(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """What gives the decoder's first layer a gradient to pass on."""
    parts = model.model
    before = (parts.vision_tower, parts.multi_modal_projector, parts.get_input_embeddings(), parts.image_gate)
    return tuple(each for each in before if each is not None)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _encoder_passes(tower: nn.Module) -> int:
    """Forward; gradients of inputs, where it learns; gradients of weights, where more than its small adapters do."""
    learning = [name for name, parameter in tower.named_parameters() if parameter.requires_grad]
    return 1 + bool(learning) + any(not is_lora(name) for name in learning)


def _left_out(layer: nn.Module, image_layers: str, passes_on: bool) -> float:
    """The matrices that no image token goes through, for each token: where tokens skip parts, nobody asks for what
    they leave out; where they do not, all count, as in any other decoder.
    """
    if image_layers == "full":
        return 0.0
    parts = parts_of(layer)
    if parts is None:
        return 0.0
    skipped = [parts.query, parts.mlp] + [parts.output] * (image_layers == "none")
    return sum(_matrices(part, passes_on) for part in skipped if part is not None)


def _matrices(module: nn.Module, passes_on: bool) -> float:
    """Of a module's matrices, for each token: forward, gradients of their input where there is anything below that
    learns, and gradients of those that learn themselves.
    """
    total = 0
    for part in module.modules():
        if isinstance(part, nn.Linear):
            total += elements(part.weight) * (2 + 2 * passes_on + 2 * part.weight.requires_grad)
    return float(total)
