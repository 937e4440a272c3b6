"""What is optimised, and at which rate: the embedding apart from the rest, biases and norms without decay."""

from typing import Any

import torch
from torch import nn


def parameter_groups(
    model: nn.Module, learning_rate: float, embedding_learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """The trainable parameters as an optimizer's groups, none of them empty.

    The input embedding is pretrained, the projection is new: `embedding_learning_rate` (0: the same rate) is
    the embedding's. Weight decay acts on matrices outside normalisation layers only. Works on partitioned
    weights too.

    Raises `ValueError` where nothing is trainable.
    """
    embedding = model.get_input_embeddings().weight
    undecayed = {id(parameter) for parameter in _undecayed(model)}
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = (parameter is embedding, id(parameter) in undecayed)
            groups.setdefault(kind, []).append(parameter)
    if not groups:
        raise ValueError("nothing in the model is trainable")
    return [
        {
            "params": parameters,
            "lr": (embedding_learning_rate or learning_rate) if is_embedding else learning_rate,
            "weight_decay": 0.0 if is_undecayed else weight_decay,
        }
        for (is_embedding, is_undecayed), parameters in groups.items()
    ]


def _undecayed(model: nn.Module) -> list[nn.Parameter]:
    """Biases and everything in normalisation layers, recognised by name since ZeRO-3 empties the shapes."""
    found = []
    for module in model.modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm or name.endswith("bias"):
                found.append(parameter)
    return found
