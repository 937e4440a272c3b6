"""What a training step costs in floating-point operations, and what share of the hardware's peak it uses: model FLOP/s
utilisation (MFU).

Only work that the mathematics asks for counts: what gradient checkpointing computes again does not. The derivation is
in docs/training.md.
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

from training.arguments.parser import VisualChatTrainingArguments
from utils.distributed import get_logger
from utils.model.building import elements
from utils.model.computed_rows import parts_of
from utils.model.decoder_check import outside_zero3
from utils.model.lora import is_lora
from utils.model.vision import encode_images, image_size, vision_family

logger = get_logger(__name__)

# Dense matrix products in bf16 (fp16 where the card has no bf16) with sums in fp32, in TFLOP/s, from the makers'
# data sheets; where these give numbers with sparsity, half of them. The first row whose words are all in the
# device's name counts.
_TFLOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("GB200",), 2500.0),
    (("B200",), 2250.0),
    (("H200", "NVL"), 835.5),
    (("H200",), 989.4),
    (("GH200",), 989.4),
    (("H100", "PCIe"), 756.5),
    (("H100", "NVL"), 835.5),
    (("H100",), 989.4),
    (("H800", "PCIe"), 756.5),
    (("H800",), 989.4),
    (("H20",), 148.0),
    (("A100",), 312.0),
    (("A800",), 312.0),
    (("A30",), 165.0),
    (("A40",), 149.7),
    (("A10G",), 70.0),
    (("A10",), 125.0),
    (("L40S",), 362.0),
    (("L40",), 181.0),
    (("L4",), 121.0),
    (("RTX", "6000", "Ada"), 364.2),
    (("RTX", "A6000"), 154.8),
    (("RTX", "4090"), 165.2),
    (("RTX", "3090"), 71.0),
    (("V100", "PCIe"), 112.0),
    (("V100",), 125.0),
    (("T4",), 65.0),
    (("MI325X",), 1307.4),
    (("MI300X",), 1307.4),
    (("MI250X",), 191.5),  # a card is two devices
)


@dataclass(frozen=True)
class Efficiency:
    """What it takes to turn counts and seconds into a share of the peak."""

    flops: "StepFlops"
    attention: str  # mmca, cross or causal
    peak: float  # FLOP/s of a device

    @classmethod
    def of(cls, model: PreTrainedModel, args: VisualChatTrainingArguments) -> "Efficiency | None":
        """None on a CPU and on a device that is not known, unless `--peak_tflops` says what it can do."""
        peak = args.peak_tflops * 1e12 or _known_peak(args.device, args.dtype)
        return None if peak is None else cls(StepFlops.of(model), model.config.attention, peak)

    def utilisation(self, operations: float, device_seconds: float) -> float:
        """The share, from 0 to 1, that so many operations in so many seconds, times devices, are of the peak."""
        return operations / (device_seconds * self.peak)


def _known_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    if device.type == "cpu":
        return None
    name = torch.get_device_module(device).get_device_name(device)
    peak = peak_flops(name) if dtype != torch.float32 else None
    if peak is None:
        precision = str(dtype).removeprefix("torch.")
        logger.info("no MFU: the peak of %s in %s is not listed; give it by --peak_tflops", name, precision)
    return peak


def peak_flops(device_name: str) -> float | None:
    """A device's peak in FLOP/s at bf16; None for one that is not in the list."""
    words = device_name.replace("-", " ").lower().split()
    for known, tflops in _TFLOPS:
        if all(word.lower() in words for word in known):
            return tflops * 1e12
    return None


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
        self, tokens: float, pairs: float, images: float, supervised_tokens: float, image_tokens: float
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
