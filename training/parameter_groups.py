"""What is optimised, and at which rate: each part of the model, biases, norms and gates without decay."""

from typing import Any

import torch
from torch import nn

from utils.model.lora import part_of_each
from utils.model.mmca import ImageGate


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    embedding_learning_rate: float,
    weight_decay: float,
    gate_learning_rate: float = 0.03,
    decoder_learning_rate: float = 0.0,
    encoder_learning_rate: float = 0.0,
    lora_learning_rate: float = 0.0,
) -> list[dict[str, Any]]:
    """The trainable parameters as an optimizer's groups, none of them empty.

    `learning_rate` is the projector's, and what others are where they are 0. The input embedding is pretrained, and so
    are decoder and encoder: theirs are `embedding_learning_rate` where they are 0. `gate_learning_rate` is that of the
    factors on the images' term, which go from 0 to some tenths. Adapters share the projector's groups unless they have
    a rate of their own. Weight decay acts on matrices outside normalisation layers only. Works on partitioned weights
    too.

    Raises `ValueError` where nothing is trainable.
    """
    pretrained = embedding_learning_rate or learning_rate
    rates = {
        "embedding": pretrained,
        "gate": gate_learning_rate,
        "decoder": decoder_learning_rate or pretrained,
        "encoder": encoder_learning_rate or pretrained,
        "lora": lora_learning_rate,
        "projector": learning_rate,
    }
    undecayed = {id(parameter) for parameter in _undecayed(model)}
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for parameter, part in zip(model.parameters(), part_of_each(model).values(), strict=True):
        if parameter.requires_grad:
            if part == "lora" and not lora_learning_rate:
                part = "projector"
            kind = (part, id(parameter) in undecayed)
            groups.setdefault(kind, []).append(parameter)
    if not groups:
        raise ValueError("nothing in the model is trainable")
    return [
        {"params": parameters, "lr": rates[part], "weight_decay": 0.0 if is_undecayed else weight_decay}
        for (part, is_undecayed), parameters in groups.items()
    ]


def _undecayed(model: nn.Module) -> list[nn.Parameter]:
    """Biases, gates and everything in normalisation layers, recognised by name since ZeRO-3 empties the shapes."""
    found = []
    for module in model.modules():
        is_norm = isinstance(module, ImageGate) or "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm or name.endswith("bias"):
                found.append(parameter)
    return found
