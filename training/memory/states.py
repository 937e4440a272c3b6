"""What a training holds beside its activations: weights, optimizer states, gradients, buffers, under each ZeRO stage.

The sizes follow what DeepSpeed allocates, checked against real runs (docs/scaling.md): which of it stays, what
exists while a pass runs, and what while the optimizer steps. Adam's two moments and the master weights are of
single precision whatever the weights are.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import Any

import torch
from torch import nn

from training.arguments.parser import VisualChatTrainingArguments
from training.parameter_groups import parameter_groups
from training.sharding import Offload
from utils.distributed import local_world_size
from utils.model.building import elements
from utils.model.lora import held_names, is_adapted

_FLOAT = 4
_QUANTISED = {4: 0.5 + 1 / 64 + 4 / (64 * 256), 8: 1}
"""Bytes of an element: in 4 bits with a scale of a byte for 64, and one of single precision for 256 of these; in 8
bits with a scale for each row, which is left out of account."""
_DOUBLE = 8  # DeepSpeed takes the norm of a gradient in double precision


@dataclass(frozen=True)
class Weights:
    """How many elements a model has: of each tensor, and of those that learn, as the optimizer groups them.

    `quantised` says how many of the elements have how few bits (`--frozen_bits`); no optimizer groups these.

    `returning` are the tensors that the backward pass needs again, and whether each learns, in the order of the
    forward pass: all but a frozen encoder's, and frozen layers' below the first that learns.

    `in_checkpoint` are the elements that a save collects for the model, by the checkpoint's form: what was trained; or
    all, and those that adapters are merged into once more.
    """

    tensors: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    returning: tuple[tuple[int, bool], ...]
    quantised: tuple[tuple[int, int], ...] = ()  # bits, elements
    in_checkpoint: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> "Weights":
        """Those of a model, on the meta device or a real one, also where ZeRO-3 has partitioned it."""
        groups = [group["params"] for group in parameter_groups(model, 1.0, 0.0, 0.0)]
        sizes = {name: elements(each) for name, each in model.named_parameters()}
        held = held_names(model) | {name for name, each in model.named_parameters() if each.requires_grad}
        returning = dropwhile(lambda each: not each[1], _in_forward_order(model))
        return cls(
            tensors=tuple(elements(each) for each in model.parameters()),
            groups=tuple(tuple(elements(each) for each in group) for group in groups),
            returning=tuple((elements(each), learns) for each, learns in returning),
            quantised=tuple(
                (module.frozen_bits, elements(module.weight))
                for module in model.modules()
                if isinstance(module, nn.Linear) and hasattr(module, "frozen_bits")
            ),
            in_checkpoint={
                "trained": sum(sizes[name] for name in held),
                "full": sum(size for name, size in sizes.items() for _ in range(1 + is_adapted(name))),
            },
        )

    @property
    def learns(self) -> list[int]:
        """Elements of each tensor that learns."""
        return [each for group in self.groups for each in group]

    @property
    def frozen(self) -> list[int]:
        """Elements of each tensor that does not."""
        return list((Counter(self.tensors) - Counter(self.learns)).elements())

    @property
    def total(self) -> int:
        """All elements."""
        return sum(self.tensors)

    @property
    def learned(self) -> int:
        """Elements that learn."""
        return sum(map(sum, self.groups))

    def nbytes(self, size: int) -> int:
        """Bytes of all, where `size` are those of an element that is not quantised."""
        quantised = sum(elements for _, elements in self.quantised)
        packed = sum(elements * _QUANTISED[bits] for bits, elements in self.quantised)
        return round((self.total - quantised) * size + packed)

    def whole_below(self, threshold: int) -> int:
        """Elements of the tensors that ZeRO-3 does not split."""
        return sum(size for size in self.tensors if size < threshold)


@dataclass(frozen=True)
class Sharding:
    """How a training is spread: what of DeepSpeed's configuration decides memory."""

    gpus: int
    stage: int
    offload: Offload = field(default_factory=Offload)
    reduce_bucket: int = 50_000_000  # elements, as all of these
    max_reuse_distance: int = 1_000_000_000
    persistence_threshold: int = 10_000
    within: str = "all"  # as `--shard_within`
    node: int | None = None  # GPUs of one; None: there is one node

    @property
    def frozen_over(self) -> int:
        """Over how many GPUs ZeRO-3 splits a frozen weight."""
        return {"all": self.gpus, "node": min(self.node or self.gpus, self.gpus), "none": 1}[self.within]

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return -(-self.gpus // (self.node or self.gpus))

    @classmethod
    def of(cls, config: dict, gpus: int, within: str = "all", node: int | None = None) -> "Sharding":
        """The part of a DeepSpeed configuration that counts here, with DeepSpeed's own defaults."""
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # here: importing it chooses the device

        zero = DeepSpeedZeroConfig(**config.get("zero_optimization", {}))
        devices = [each.device if each else "none" for each in (zero.offload_optimizer, zero.offload_param)]
        kinds: list[Any] = [getattr(each, "value", each) for each in devices]
        return cls(
            gpus=gpus,
            stage=int(zero.stage),
            offload=Offload(*kinds),
            reduce_bucket=zero.reduce_bucket_size * (2 if zero.overlap_comm and zero.stage < 3 else 1),
            max_reuse_distance=zero.max_reuse_distance,
            persistence_threshold=zero.param_persistence_threshold,
            within=within,
            node=node,
        )


@dataclass(frozen=True)
class States:
    """Bytes that one process holds on its GPU, in main memory and on NVMe, beside activations.

    resting: by kind, always there. passing: more of it while a pass runs. stepping: more while the optimizer
    steps. accumulated: gradients that wait for the step while the next pass of the same step runs.
    """

    resting: dict[str, int]
    passing: dict[str, int]
    stepping: dict[str, int]
    accumulated: int
    host: int
    disk: int


def states(weights: Weights, sharding: Sharding, dtype: torch.dtype) -> States:
    """What a process holds under a stage."""
    return (_whole, _split_optimizer, _split_optimizer, _split_weights)[sharding.stage](
        weights, sharding, dtype
    )


def states_of(model: nn.Module, arguments: VisualChatTrainingArguments) -> States:
    """What a process of a training holds of its model."""
    config, gpus = arguments.hf_deepspeed_config.config, arguments.world_size
    sharding = Sharding.of(config, gpus, arguments.shard_within, local_world_size())
    return states(Weights.of(model), sharding, arguments.dtype)


def copied_for_saving(
    weights: Weights, sharding: Sharding, dtype: torch.dtype, form: str = "trained", model_only: bool = False
) -> int:
    """Bytes in main memory for the copy that is written in the background, in the first process: the others have less.

    The weights of the checkpoint's model in its form, and, unless that is all, this process's part of the optimizer's
    states and, where they are whole, what learns once more as DeepSpeed's.
    """
    size, learned = dtype.itemsize, weights.learned
    model = weights.in_checkpoint[form] * size
    if model_only:
        return model
    if sharding.stage == 0:
        optimizer = (2 if size == _FLOAT else 3) * learned
    elif sharding.stage < 3:
        optimizer = 3 * sum(_partition(group, sharding.gpus) for group in weights.groups)
    else:
        optimizer = 3 * sum(-(-each // sharding.gpus) for group in weights.groups for each in group)
    return model + optimizer * _FLOAT + (0 if sharding.stage == 3 else learned * size)


def _whole(weights: Weights, sharding: Sharding, dtype: torch.dtype) -> States:
    """Stage 0: everything everywhere."""
    size, learned = dtype.itemsize, weights.learned
    master = 0 if size == _FLOAT else learned * _FLOAT
    reduced = learned * size if sharding.gpus > 1 else 0  # gradients side by side, for one exchange
    return States(
        resting={"weights": weights.nbytes(size), "optimizer": master + 2 * learned * _FLOAT},
        passing={},
        stepping={"gradients": learned * size + max(master, reduced)},
        accumulated=learned * size,
        host=0,
        disk=0,
    )


def _split_optimizer(weights: Weights, sharding: Sharding, dtype: torch.dtype) -> States:
    """Stages 1 and 2: each process steps for its part of what learns; weights are whole."""
    size = dtype.itemsize
    parts = [_partition(group, sharding.gpus) for group in weights.groups]
    states_size = 3 * _FLOAT * sum(parts)
    kept = weights.learned if sharding.stage == 1 else _touched(weights.groups, sharding.gpus)
    flat = max(parts) * (_FLOAT + (size if size < _FLOAT else 0))
    norm = max(min(part, max(group)) for part, group in zip(parts, weights.groups, strict=True)) * _DOUBLE
    resting = {"weights": weights.nbytes(size), "optimizer": states_size}
    host = 0
    largest = max(map(max, weights.groups))
    passing = {"communication": sharding.reduce_bucket * size}
    stepping = {"gradients": kept * size + max(flat, norm)}
    accumulated = kept * size
    if sharding.offload.optimizer != "none":
        resting |= {"optimizer": 0, "communication": largest * size}  # a gradient on its way out
        host = states_size + sum(parts) * (_FLOAT + size) + (largest + weights.learned) * size
        stepping, accumulated = {}, 0
    return States(resting, passing, stepping, accumulated, host, disk=0)


def _split_weights(weights: Weights, sharding: Sharding, dtype: torch.dtype) -> States:
    """Stage 3: weights too are split, and gathered where they are needed."""
    size, gpus = dtype.itemsize, sharding.gpus
    kept_whole = _kept_whole(weights, sharding) * size
    learned = _part(weights.learns, gpus)
    split = (_part(weights.frozen, sharding.frozen_over) + learned) * size
    states_size, gradients = 3 * _FLOAT * learned, learned * size
    largest = -(-max(weights.learns) // gpus)
    resting = {
        "weights": split + kept_whole,
        "optimizer": states_size,
        "gradients": gradients,
        "communication": sharding.reduce_bucket * size,
    }
    host = disk = 0
    moved = {"weights": sharding.offload.weights, "optimizer": sharding.offload.optimizer}
    if moved["weights"] != "none":
        resting["weights"] = kept_whole
        host, disk = (split, 0) if moved["weights"] == "cpu" else (0, split)
    if moved["optimizer"] != "none":
        resting |= {"optimizer": 0, "gradients": 0}
        outside = states_size + learned * _FLOAT
        host += gradients + outside
    stepping = {} if moved["optimizer"] != "none" else {"gradients": max(largest * _DOUBLE, learned * _FLOAT)}
    return States(resting, {"gathered": _gathered(weights, sharding) * size}, stepping, 0, host, disk)


def _part(tensors: Sequence[int], gpus: int) -> int:
    """Elements of one GPU's parts of tensors that are split over so many."""
    return sum(-(-each // gpus) for each in tensors)


def _kept_whole(weights: Weights, sharding: Sharding) -> int:
    """Elements that stay whole on each GPU beside its parts: of small tensors, and of what learns (`place_frozen`)."""
    if sharding.within == "all":
        return weights.whole_below(sharding.persistence_threshold)
    small = [each for each in weights.frozen if each < sharding.persistence_threshold]
    learned = weights.learned if sharding.gpus > 1 else 0
    return learned + (sum(small) if sharding.frozen_over > 1 else 0)


def _gathered(weights: Weights, sharding: Sharding) -> int:
    """Elements of whole weights that are there when the head runs, which is when activations are the most."""
    if sharding.frozen_over == 1 and sharding.offload.weights == "none":
        return 0
    kept = kept_for_backward(weights, sharding)
    return sum(size for size, learns in kept if sharding.within == "all" or not learns)


def kept_for_backward(weights: Weights, sharding: Sharding) -> Iterator[tuple[int, bool]]:
    """Gathered tensors that are still whole when the backward pass needs them, and whether each learns.

    DeepSpeed does not let go of what it will need again within `max_reuse_distance` elements; from the end of the
    forward pass the way back is as long as the way there.
    """
    after = 0
    for size, learns in reversed(weights.returning):
        if after and 2 * after >= sharding.max_reuse_distance:
            break
        after += size
        if size >= sharding.persistence_threshold:
            yield size, learns


def _in_forward_order(model: nn.Module) -> Iterator[tuple[torch.Tensor, bool]]:
    """The parameters, and whether each learns; a gate has a factor in every layer, so it stands before them."""
    gate = model.model.image_gate
    gate = [] if gate is None else list(gate.parameters())
    decoder = next(model.model.language_model.parameters())
    for parameter in model.parameters():
        if parameter is decoder:
            yield from ((each, each.requires_grad) for each in gate)
        if not any(parameter is each for each in gate):
            yield parameter, parameter.requires_grad


def _partition(group: Sequence[int], gpus: int) -> int:
    """Elements of a group's equal parts: DeepSpeed aligns them to two elements."""
    step = 2 * gpus
    return -(-sum(group) // step) * step // gpus


def _touched(groups: Sequence[Sequence[int]], gpus: int) -> int:
    """Elements of the tensors of which some process owns a part, for the process that keeps the most.

    Stage 2 keeps a gradient whole where a part of it is its own, until the step.
    """
    most = 0
    for process in range(gpus):
        kept = 0
        for group in groups:
            part = _partition(group, gpus)
            begin = 0
            for size in group:
                if begin < (process + 1) * part and begin + size > process * part:
                    kept += size
                begin += size
        most = max(most, kept)
    return most
