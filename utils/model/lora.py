"""Low-rank adapters (LoRA) in decoder and encoder, through peft, without a wrapper around the model."""

from dataclasses import dataclass

import torch
from torch import nn

_ADAPTER = "default"
_DOWN, _UP, _BASE = f".lora_A.{_ADAPTER}.weight", f".lora_B.{_ADAPTER}.weight", ".base_layer."


@dataclass(frozen=True)
class LoraSettings:
    """Which linear layers get adapters, and of which rank; rank 0 means none.

    A layer is adapted where its name contains `lang_module_name` (decoder) or `vis_module_name` (encoder).
    The decoder's names start with "model.", as in a stock causal language model. alpha: the update counts
    alpha / rank times; None takes the rank, so once. only_optimize_lora: in the
    configurations of earlier checkpoints; it says which parts their run froze, and nothing of the model.
    """

    lang_dim: int = 0
    lang_module_name: str = "model.layers."
    vis_dim: int = 0
    vis_module_name: str = "encoder.layers."
    only_optimize_lora: bool = False
    alpha: float | None = None

    def __bool__(self) -> bool:
        return self.lang_dim > 0 or self.vis_dim > 0

    def scaling(self, rank: int) -> float:
        """What the product of the two low-rank matrices is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / rank


def inject_lora(model: nn.Module, settings: LoraSettings) -> None:
    """Put adapters into a model's decoder and encoder, in place; they start as the identity."""
    _inject(model.model.language_model, settings.lang_dim, settings.lang_module_name, "model.", settings)
    _inject(model.model.vision_tower, settings.vis_dim, settings.vis_module_name, "", settings)


def _inject(module: nn.Module, rank: int, wanted: str, prefix: str, settings: LoraSettings) -> None:
    if rank == 0:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs the package peft: pip install peft") from error
    layers = linear_layers(module)
    names = [name for name in layers if wanted in prefix + name]
    if not names:
        raise ValueError(
            f"LoRA finds no linear layer of {type(module).__name__} with {wanted!r} in its name; they are named"
            f" {', '.join(prefix + name for name in layers[:2])}, ..."
        )
    config = LoraConfig(r=rank, lora_alpha=settings.scaling(rank) * rank, target_modules=names)
    inject_adapter_in_model(config, module, adapter_name=_ADAPTER)


def linear_layers(module: nn.Module) -> list[str]:
    """The names of the linear layers that are called as layers.

    Those inside torch's own multi-head attention are not: it takes their weights, and would pass adapters by.
    """
    passed_by = {
        f"{name}." for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)
    }
    return [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and not name.startswith(tuple(passed_by))
    ]


def is_lora(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def plain_name(name: str) -> str:
    """The name of a weight as it is where its layer has no adapter."""
    return name.replace(_BASE, ".")


def merge_lora(state: dict[str, torch.Tensor], settings: LoraSettings | None) -> dict[str, torch.Tensor]:
    """A state dict of the same model without adapters: each adapted weight W becomes W + scaling * B A."""
    if settings is None:
        return state
    merged = {}
    for name, tensor in state.items():
        if is_lora(name):
            continue
        layer = name.removesuffix("weight").removesuffix(_BASE)
        if name.endswith(_BASE + "weight") and layer + _DOWN in state:
            down, up = state[layer + _DOWN].float(), state[layer + _UP].float()  # [r, in], [out, r]
            update = settings.scaling(down.shape[0]) * (up @ down)
            tensor = (tensor.float() + update).to(tensor.dtype)
        merged[plain_name(name)] = tensor
    return merged
