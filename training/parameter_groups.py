"""What is optimised, and at which rate: the embedding apart from the rest, biases, norms and gates without decay."""

from typing import Any

import torch
from torch import nn

from utils.model.lora import is_lora
from utils.model.mmca import ImageGate


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    embedding_learning_rate: float,
    weight_decay: float,
    gate_learning_rate: float = 0.03,
    lora_learning_rate: float = 0,
) -> list[dict[str, Any]]:
    """The trainable parameters as an optimizer's groups, none of them empty.

    The input embedding is pretrained, the projection is new: `embedding_learning_rate` (0: the same rate) is
    the embedding's. `gate_learning_rate` is that of the factors on the images' term, which go from 0 to some
    tenths, `lora_learning_rate` (0: the same rate) that of the adapters. Weight decay acts on matrices outside
    normalisation layers only. Works on partitioned weights too.

    Raises `ValueError` where nothing is trainable.
    """
    rates = {
        "embedding": embedding_learning_rate or learning_rate,
        "gate": gate_learning_rate,
        "lora": lora_learning_rate,
        "rest": learning_rate,
    }
    part_of = {model.get_input_embeddings().weight: "embedding"}
    gates = (module for module in model.modules() if isinstance(module, ImageGate))
    part_of |= {factors: "gate" for gate in gates for factors in gate.parameters()}
    if lora_learning_rate:
        part_of |= {each: "lora" for name, each in model.named_parameters() if is_lora(name)}
    undecayed = {id(parameter) for parameter in _undecayed(model)}
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = (part_of.get(parameter, "rest"), id(parameter) in undecayed)
            groups.setdefault(kind, []).append(parameter)
    if not groups:
        raise ValueError("nothing in the model is trainable")
    return [
        {
            "params": parameters,
            "lr": rates[part],
            "weight_decay": 0.0 if is_undecayed else weight_decay,
        }
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
