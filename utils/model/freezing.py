"""Which parameters learn: decided here, and nowhere else."""

import logging

from torch import nn

from .lora import is_lora

logger = logging.getLogger(__name__)


def freeze(model: nn.Module) -> None:
    """Let the input embedding, the projector, the image gate and the adapters learn, nothing else; log the counts."""
    parts = {
        "embedding": model.get_input_embeddings(),
        "projector": model.model.multi_modal_projector,
        "image gate": model.model.image_gate,
    }
    part_of = {
        parameter: part for part, module in parts.items() if module for parameter in module.parameters()
    }
    learning = dict.fromkeys((*parts, "LoRA"), 0)
    total = 0
    for name, parameter in model.named_parameters():
        part = "LoRA" if is_lora(name) else part_of.get(parameter)
        parameter.requires_grad_(part is not None)
        size = getattr(parameter, "ds_numel", parameter.numel())  # partitioned parameters know the whole
        total += size
        if part is not None:
            learning[part] += size
    counts = ", ".join(f"{part} {count:,}" for part, count in learning.items() if count)
    learns = sum(learning.values())
    logger.info("learning: %s parameters (%s); frozen: %s", f"{learns:,}", counts, f"{total - learns:,}")
