"""Images through the encoder: a few at a time, frozen where it does not learn, as often on every process."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from .vision import encode_images

AT_ONCE = 32
"""Images that the encoder takes at a time: enough to fill a GPU, few enough that their activations are small."""


def encode(tower: nn.Module, pixel_values: torch.Tensor, at_once: int = AT_ONCE) -> torch.Tensor:
    """Pixels [N, 3, H, W] -> last hidden states [N, S, D]; 0 at once takes all together.

    The encoder computes in its own precision, whatever autocast says around it. Under ZeRO-3 its weights are
    gathered by all processes whenever one enters it, so those with fewer images enter it with a blank one as
    often as the process with the most.
    """
    parts = pixel_values.split(at_once) if at_once else (pixel_values,)
    # Agreed on before anyone enters: who asked after its own parts would wait for those who still gather.
    entries = _most(len(parts), pixel_values.device) if at_once else 1
    with _own_precision(pixel_values.device):
        features = [encode_images(tower, part) for part in parts]
        for _ in range(entries - len(parts)):
            blank = encode_images(tower, torch.zeros_like(pixel_values[:1]))
            features[-1] = features[-1] + 0.0 * blank.sum()  # where the encoder learns, its backward runs too
    return features[0] if len(features) == 1 else torch.cat(features)


def _own_precision(device: torch.device) -> AbstractContextManager[None]:
    """Without autocast, which not every device has: shapes alone (the memory plan's) have none."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _most(count: int, device: torch.device) -> int:
    """The largest count of all processes, where they must agree on it."""
    together = torch.distributed
    if not is_deepspeed_zero3_enabled() or not together.is_initialized() or together.get_world_size() == 1:
        return count
    counts = torch.tensor(count, device=device)
    together.all_reduce(counts, op=together.ReduceOp.MAX)
    return int(counts)
