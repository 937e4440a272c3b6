"""The memory plan of a training: what one process holds at the moment when it holds the most.

Adds up what stays (`states`) and what a pass over the largest batch needs (`trace`), and searches: the largest
batch that fits, and the setting that fits at the least cost.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from training.memory.states import Sharding, States, Weights, copied_for_saving, states
from training.memory.trace import Activations, BatchShape, meta_model, trace
from training.sharding import Offload
from utils.commands import ROOT
from utils.model import VisualChatConfig, VisualChatForConditionalGeneration
from utils.model.lora import PUBLISHED, LoraSettings
from utils.model.quantised import UNQUANTISED, FrozenBits

GB = 1e9
OUTSIDE = 1.5 * GB
"""What a GPU gives to CUDA's context, NCCL and cuBLAS, which PyTorch's account leaves out."""
HEADROOM = 0.05
"""The share of a GPU's memory that the allocator loses to pieces of unlike size."""

_PLAN_OF_STDIN = """
import pickle, sys
from training.memory.plan import Planner
sys.stdout.buffer.write(pickle.dumps(Planner().plan(pickle.load(sys.stdin.buffer))))
"""
_MOST_ROWS = 256  # that the search for the largest batch tries
_MOST_PAIRS = 2**28  # of tokens in these rows: their masks are real, and take main memory


@dataclass(frozen=True)
class Training:
    """Everything that decides the memory of a training."""

    config: VisualChatConfig
    dtype: torch.dtype
    batches: tuple[BatchShape, ...]
    sharding: Sharding
    lora: LoraSettings | None = None
    gradient_checkpointing: bool = False
    accumulation: int = 1
    train: tuple[str, ...] = PUBLISHED
    frozen_bits: FrozenBits = UNQUANTISED
    save_in_background: bool = False
    checkpoint_form: str = "trained"  # of checkpoint-N
    save_only_model: bool = False

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return self.batches[0].rows

    def with_rows(self, rows: int) -> "Training":
        """The same with batches of so many rows."""
        return replace(self, batches=tuple(each.with_rows(rows) for each in self.batches))

    def describe(self) -> str:
        """The setting in a few words."""
        words = [f"ZeRO-{self.sharding.stage}"]
        if self.sharding.stage == 3 and self.sharding.within != "all":
            words.append(f"--shard_within {self.sharding.within}")
        if self.frozen_bits:
            words.append(self.frozen_bits.describe())
        words.append("checkpointing" if self.gradient_checkpointing else "no checkpointing")
        for name, device in (
            ("optimizer", self.sharding.offload.optimizer),
            ("weights", self.sharding.offload.weights),
        ):
            if device != "none":
                words.append(f"{name} on {device}")
        return ", ".join(words)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one process: on the device by kind at the peak, in main memory, on NVMe."""

    training: Training
    batch: BatchShape
    weights: Weights
    states: States
    activations: Activations
    device: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """The most that its tensors take on the device."""
        return sum(self.device.values())

    @property
    def saving(self) -> int:
        """What the copy for saving in the background takes in main memory."""
        training = self.training
        if not training.save_in_background:
            return 0
        form, model_only = training.checkpoint_form, training.save_only_model
        return copied_for_saving(self.weights, training.sharding, training.dtype, form, model_only)

    def fits(self, memory: float) -> bool:
        """Whether a device of so many bytes has room for it, and for what is outside PyTorch's account."""
        return self.peak <= memory * (1 - HEADROOM) - OUTSIDE


class Planner:
    """Plans of trainings that differ in rows, stage, offloading and checkpointing; a trace is made once."""

    def __init__(self) -> None:
        self._traces: dict[tuple, Activations] = {}
        self._models: dict[tuple, VisualChatForConditionalGeneration] = {}

    def plan(self, training: Training) -> MemoryPlan:
        """The plan of the batch, among a training's largest, that takes the most."""
        return max(
            (self._plan_batch(training, batch) for batch in training.batches), key=lambda plan: plan.peak
        )

    def largest(self, training: Training, memory: float) -> MemoryPlan | None:
        """The plan with the most rows that fits into so many bytes; None where one row does not."""
        first = self.plan(training.with_rows(1))
        if not first.fits(memory):
            return None
        second = self.plan(training.with_rows(2))
        growth = max(second.peak - first.peak, 1)
        room = memory * (1 - HEADROOM) - OUTSIDE
        rows = min(max(1 + int((room - first.peak) / growth), 1), self.most_rows(training))
        best = first
        while rows > 1:  # a straight line is near the truth, and the trace says the rest
            found = self.plan(training.with_rows(rows))
            if found.fits(memory):
                best = found
                break
            rows -= max(1, int((found.peak - room) / growth))
        return best

    def most_rows(self, training: Training) -> int:
        """The rows up to which `largest` looks."""
        length = max(batch.length for batch in training.batches)
        return max(1, min(_MOST_ROWS, _MOST_PAIRS // length**2))

    def cheapest(self, training: Training, memory: float, host: float) -> MemoryPlan | None:
        """The first of `choices`, which begin with the fastest, that fits a training's own rows."""
        for choice in choices(training):
            found = self.plan(choice)
            if found.fits(memory) and found.states.host + found.saving <= host:
                return found
        return None

    def _plan_batch(self, training: Training, batch: BatchShape) -> MemoryPlan:
        weights = Weights.of(self._model(training))
        held = states(weights, training.sharding, training.dtype)
        activations = self._trace(training, batch)
        passing = {"activations": activations.peak}
        if training.accumulation > 1:
            passing["gradients"] = held.accumulated
        passing = _sum(held.resting, held.passing, passing)
        stepping = _sum(held.resting, held.stepping)
        device = max(passing, stepping, key=lambda kinds: sum(kinds.values()))
        device = {kind: size for kind, size in device.items() if size}
        return MemoryPlan(training, batch, weights, held, activations, device)

    def _model(self, training: Training) -> VisualChatForConditionalGeneration:
        key = (training.gradient_checkpointing,)
        if key not in self._models:
            self._models[key] = meta_model(
                training.config,
                training.dtype,
                training.lora,
                training.gradient_checkpointing,
                training.train,
                training.frozen_bits,
            )
        return self._models[key]

    def _trace(self, training: Training, batch: BatchShape) -> Activations:
        keeps = training.sharding.stage < 2
        key = (training.gradient_checkpointing, batch, keeps)
        if key not in self._traces:
            self._traces[key] = trace(self._model(training), batch, keeps)
        return self._traces[key]


def choices(training: Training) -> Iterator[Training]:
    """Settings for a training, the fastest first.

    Without splitting the weights nothing has to be gathered, and within a node gathering is fast; over nodes it
    hides behind computing where a device has more than about a thousand tokens a step; recomputing costs a third
    more; moving to main memory more than that. Splitting over one device saves nothing.
    """
    spreads = [replace(training.sharding, stage=2, offload=Offload())]
    if training.sharding.gpus > 1 and not training.frozen_bits:
        spreads += [each.sharding for each in within(training)]
    for recomputing in (False, True):
        for sharding in spreads:
            yield replace(training, sharding=sharding, gradient_checkpointing=recomputing)
    for sharding in spreads:
        out = replace(sharding, offload=Offload("cpu"))
        yield replace(training, sharding=out, gradient_checkpointing=True)
    if not training.frozen_bits:  # quantised weights cannot be split
        out = replace(training.sharding, stage=3, within="all", offload=Offload("cpu", "cpu"))
        yield replace(training, sharding=out, gradient_checkpointing=True)


def within(training: Training) -> list[Training]:
    """A training under ZeRO-3, nothing moved out, by each value of `--shard_within` that differs, the fastest first."""
    values = ("none", "node", "all") if training.sharding.nodes > 1 else ("none", "all")
    sharding = replace(training.sharding, stage=3, offload=Offload())
    return [replace(training, sharding=replace(sharding, within=value)) for value in values]


def _sum(*kinds: dict[str, int]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in kinds:
        for kind, size in each.items():
            total[kind] = total.get(kind, 0) + size
    return total


def predict_in_subprocess(training: Training) -> MemoryPlan:
    """`Planner().plan(training)`, made in a process of its own from within a training; no GPU is touched.

    There a process group and ZeRO-3 are at work, which a model that is built on shapes would take part in.
    """
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    done = subprocess.run(
        [sys.executable, "-c", _PLAN_OF_STDIN],
        input=pickle.dumps(training),
        capture_output=True,
        cwd=ROOT,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
    )
    if done.returncode:
        raise RuntimeError(f"the memory plan failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return pickle.loads(done.stdout)
