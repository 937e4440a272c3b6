"""Which parameters learn: decided here, and nowhere else."""

import logging

from torch import nn

from .lora import is_lora

logger = logging.getLogger(__name__)


def freeze(model: nn.Module) -> None:
    """Let the input embedding, the projector and the adapters learn, nothing else; log the counts."""
    learning = {"embedding": 0, "projector": 0, "LoRA": 0}
    total = 0
    embedding = set(model.get_input_embeddings().parameters())
    projector = set(model.model.multi_modal_projector.parameters())
    for name, parameter in model.named_parameters():
        if is_lora(name):
            part = "LoRA"
        else:
            part = "embedding" if parameter in embedding else "projector" if parameter in projector else None
        parameter.requires_grad_(part is not None)
        size = getattr(parameter, "ds_numel", parameter.numel())  # partitioned parameters know the whole
        total += size
        if part is not None:
            learning[part] += size
    parts = ", ".join(f"{part} {count:,}" for part, count in learning.items() if count)
    learns = sum(learning.values())
    logger.info("learning: %s parameters (%s); frozen: %s", f"{learns:,}", parts, f"{total - learns:,}")
