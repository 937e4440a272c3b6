"""What an optimizer step sends over wires, under each ZeRO stage and `--shard_within`, and how long that takes.

Collectives are counted as rings, which is how NCCL and gloo do large ones: of a gather or a scatter of so many bytes
over n processes each takes in (n - 1) / n from its neighbour, of a reduction to all twice that. The neighbours of two
nodes are joined by the network, others by what joins the GPUs of a node. What DeepSpeed does was counted on real
steps (`benchmarks.memory --gpus_per_node`).
"""

from dataclasses import dataclass

import torch

from training.memory.states import Sharding, Weights, kept_for_backward


@dataclass(frozen=True)
class Traffic:
    """Bytes of one optimizer step: that a node takes in from other nodes, and a GPU from its node's others."""

    between: float = 0.0
    inside: float = 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.between + other.between, self.inside + other.inside)

    def seconds(self, network: float, nvlink: float) -> float:
        """The time it takes where nothing else does, at so many bytes a second into a node and into a GPU."""
        return self.between / network + self.inside / nvlink


def traffic(weights: Weights, sharding: Sharding, dtype: torch.dtype, accumulation: int = 1) -> Traffic:
    """What a step of so many micro-batches sends."""
    size = dtype.itemsize
    learned = _ring(weights.learned * size, sharding.gpus, sharding)
    if sharding.stage == 0:
        return _times(2, learned)  # one exchange of the gradients of all micro-batches
    if sharding.stage < 3:  # reduced to all, though one needs them; then the weights that others have stepped
        return _times(1 + 2 * (accumulation if sharding.stage == 2 else 1), learned)
    frozen = _gathered(weights, sharding, learns=False) * size
    gathers = _times(accumulation, _ring(frozen, sharding.frozen_over, sharding))
    if sharding.within == "all":
        again = _gathered(weights, sharding, learns=True) * size
        gathers += _times(accumulation, _ring(again, sharding.gpus, sharding))
    else:
        gathers += learned  # once a step
    return gathers + _times(accumulation, learned)


def _gathered(weights: Weights, sharding: Sharding, learns: bool) -> int:
    """Elements that the two passes of a micro-batch gather, of what learns or of what is frozen."""
    least = sharding.persistence_threshold
    there = sum(each for each in (weights.learns if learns else weights.frozen) if each >= least)
    back = sum(each for each, learning in weights.returning if learning == learns and each >= least)
    kept = sum(each for each, learning in kept_for_backward(weights, sharding) if learning == learns)
    return there + back - kept


def _ring(size: float, gpus: int, sharding: Sharding) -> Traffic:
    """A gather or a scatter of so many bytes over so many neighbouring GPUs."""
    received = size * (gpus - 1) / gpus
    node = sharding.node or sharding.gpus
    return Traffic(received if gpus > node else 0.0, received if node > 1 else 0.0)


def _times(count: int, each: Traffic) -> Traffic:
    return Traffic(count * each.between, count * each.inside)
