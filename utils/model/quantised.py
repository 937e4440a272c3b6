"""Frozen weights in 4 or 8 bits, by bitsandbytes: of decoder and encoder, which a training goes through and leaves."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from .lora import linear_layers
from .vision import vision_family


class FrozenBits(NamedTuple):
    """Bits of the frozen matrices of decoder and encoder: 4, 8, or 0 where they are not quantised."""

    decoder: int = 0
    encoder: int = 0

    def __bool__(self) -> bool:
        return any(self)

    def describe(self) -> str:
        """In a few words."""
        return ", ".join(f"frozen {part} in {bits} bits" for part, bits in self._asdict().items() if bits)


UNQUANTISED = FrozenBits()


def bitsandbytes_config(
    bits: int, dtype: torch.dtype | str | None, whole: Sequence[str] = ("lm_head",)
) -> BitsAndBytesConfig:
    """nf4 with quantised scales, or 8 bits; 4 bits compute in `dtype`. whole: modules that are not quantised."""
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else None,
        llm_int8_skip_modules=list(whole),
    )


def load_frozen(
    load: Callable[..., PreTrainedModel],
    path: str,
    dtype: torch.dtype | str | None,
    bits: int,
    whole: Sequence[str] = ("lm_head",),
) -> PreTrainedModel:
    """What `load` gives; with bits, 4 or 8, its linear layers are quantised, those of the modules `whole` aside.

    It is a part like any other then: only training knows of its bits, checkpoints do not.
    """
    if not bits:
        return load(path, dtype)
    model = load(path, dtype, quantization_config=bitsandbytes_config(bits, dtype, whole))
    del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):  # it can be moved, as any part
        vars(model).pop(name, None)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # adapters ask for it
        setattr(model.base_model, name, getattr(model, name, False))
    for layer in quantised_layers(model).values():
        layer.frozen_bits = bits  # the memory plan asks for it
        layer.support_avx512bf16_for_cpu = False  # that kernel packs weights anew, and has no backward
        layer.register_state_dict_post_hook(_without_scales)
    return model


def quantised_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that bitsandbytes has quantised, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    }


def whole_weight(layer: nn.Linear) -> torch.Tensor:
    """The numbers that a quantised layer's bits stand for, [out, in]."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Any = layer.weight
    if hasattr(weight, "quant_state"):
        return dequantize_4bit(weight.data, weight.quant_state)
    scales = layer.state.SCB if layer.state.SCB is not None else weight.SCB  # the first pass moves them
    return weight.data.float() * scales[:, None] / 127


def encoder_matrices(config: PreTrainedConfig) -> tuple[list[str], list[str]]:
    """The names of an encoder's linear layers: those that are quantised, and the others.

    Those are in its repeated layers, whose names are numbers. What stands before and behind them is small, and a model
    may take the type of its first matrix for that of its input (SigLIP 2). Raises `ValueError` where there is none.
    """
    with torch.device("meta"):
        tower = vision_family(config).model(config)
    quantised = [name for name in linear_layers(tower) if re.search(r"\.\d+\.", name)]
    if not quantised:
        raise ValueError(
            f"the encoder {config.model_type} has no matrices to quantise: give --frozen_bits one number, the decoder's"
        )
    linear = [name for name, module in tower.named_modules() if isinstance(module, nn.Linear)]
    return quantised, [name for name in linear if name not in quantised]


def _without_scales(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Scales are no weights: whoever loads the base model again has them again."""
    own = [
        name for name in state if name.startswith(prefix) and name[len(prefix) :] not in ("weight", "bias")
    ]
    for name in own:
        del state[name]
