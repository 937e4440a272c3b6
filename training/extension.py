"""How a training meets what is not its core: `Extension`s, loaded by the names below; one whose code is deleted is left
out. What they and the writer of checkpoints know of a training is its `RunContext`.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback, TrainerState
from transformers.trainer_callback import CallbackHandler

from training.arguments import DataArguments, ModelArguments
from training.arguments.parser import VisualChatTrainingArguments
from training.exit_codes import StoppedBySignal
from utils.data import Batch, EncodedDataset, PackedDataset
from utils.data.bad_records import BadRecords
from utils.plugins import found, wing

ALWAYS = (
    "training.fault_tolerance.bad_batches.BadBatches",
    "training.fault_tolerance.callback.RunGuard",
    "training.metrics.loss_by_dataset.DatasetLosses",
    "training.metrics.throughput.ThroughputMeter",
    "training.metrics.progress.ProgressReporter",
    "training.metrics.trackers.Trackers",
    "training.run_report.summary.RunReport",
)
"""Extensions of every training, in the order in which they are called."""

ON_REQUEST = {
    "eval_generate": "training.metrics.answer_check.AnswerAccuracy",
    "data_debug_path": "training.data_report.page.SamplePage",
    "dry_run_worst_batch": "training.memory.worst_batch.WorstBatch",
    "deepspeed_config": "training.user_config.UserConfig",
    "deepspeed": "training.user_config.UserConfig",
}
"""Flag: the extension that it asks for; these come after the others."""


class Verdict(Enum):
    """How a training goes on; the same on all processes."""

    CONTINUE = 1
    SKIP_STEP = 2
    """The loss of this step is NaN or infinite: no weight changes."""
    SAVE_AND_STOP = 3
    """A process was asked to stop: what this step has begun is given up, and its predecessor saved."""


@dataclass(frozen=True)
class Prepared:
    """What a training is made of, before it begins."""

    model_arguments: ModelArguments
    data_arguments: DataArguments
    arguments: VisualChatTrainingArguments
    model: PreTrainedModel
    processor: ProcessorMixin
    learned: EncodedDataset | PackedDataset
    held_out: EncodedDataset | PackedDataset | None
    bad: BadRecords  # found so far


@dataclass(frozen=True)
class RunContext:
    """All that writing checkpoints and extensions need of a trainer: its parts, and no way back to it."""

    engine: Any  # DeepSpeed's
    state: TrainerState
    args: VisualChatTrainingArguments
    model: PreTrainedModel
    processor: ProcessorMixin
    schedule: Any  # of the learning rate: torch's, DeepSpeed's, or accelerate's wrapper of it
    save_random_state: Callable[[str], None]  # this process's, into a folder, as transformers reads it
    callbacks: CallbackHandler
    enter: Callable[[Batch], dict[str, Any]]  # an evaluation's batch: its inputs, on the device
    pausing: Callable[[], AbstractContextManager[None]]  # the block may take its time
    finish_saving: Callable[[], None]  # waits for a checkpoint that is being written; all processes call


@dataclass(frozen=True, eq=False)
class RandomState:
    """What Python's, numpy's and torch's generators will draw next, the device's included."""

    python: Any
    numpy: Any
    torch: torch.Tensor
    device: torch.Tensor | None

    @classmethod
    def now(cls) -> "RandomState":
        """The state at this moment; the device is not waited for."""
        device = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), device)

    def restore(self) -> None:
        """Go back to it."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device)


class Extension(TrainerCallback):
    """What is added to a training, by methods of which each may stay as it is here, and by transformers' events.

    One is made before the command line is read. All processes call all methods alike, in the order below.
    """

    context: RunContext  # since the training has begun

    def around(self, arguments: VisualChatTrainingArguments) -> AbstractContextManager[None]:
        """What the whole training, reading its data included, happens within."""
        return nullcontext()

    def start(self, arguments: VisualChatTrainingArguments, resumed: Path | None) -> None:
        """The output folder is ready, data and model are not read. `resumed`: the checkpoint to go on from."""

    def prepare(self, parts: Prepared) -> None:
        """Data and model are there."""

    def begin(self, context: RunContext) -> None:
        """The first step is next."""
        self.context = context

    def finish(self) -> None:
        """The last checkpoint is written."""

    def leave(self, code: int, reason: str) -> None:
        """The process ends with an exit code, for a reason where that is no success."""

    # A step

    def reading(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of the next step, as they are read."""
        return batches

    def before_batch(self, batch: Batch, evaluating: bool = False) -> Verdict:
        """The model is about to read a batch."""
        return Verdict.CONTINUE

    def computed(
        self, batch: Batch, loss: torch.Tensor, token_losses: torch.Tensor, evaluating: bool = False
    ) -> None:
        """The loss of a batch, and of each of its n supervised tokens, [n]; no backward pass yet."""

    def judge_step(self) -> Verdict:
        """The optimizer is about to step."""
        return Verdict.CONTINUE

    def judge_gradient(self, norm: float | None, overflowed: bool) -> None:
        """The norm of the step's gradients, after the optimizer's step; DeepSpeed drops one that `overflowed`."""

    # Around what is no step

    def evaluating(self) -> AbstractContextManager[None]:
        """The block evaluates."""
        return nullcontext()

    def pausing(self) -> AbstractContextManager[None]:
        """The block may take its time, as what is written does."""
        return nullcontext()

    def saving(self) -> AbstractContextManager[None]:
        """The block writes a checkpoint of the last complete step."""
        return self.pausing()

    # What is told

    def add_to_log(self, logs: dict[str, float]) -> None:
        """A line of the log, with the mean loss since the line before."""

    def add_to_evaluation(self, metrics: dict[str, float]) -> None:
        """What an evaluation has measured; names begin with `eval_`."""

    # Of an extension that stops the training

    is_stopping = False
    """Whether the next checkpoint ends the run."""

    def back_to_last_step(self) -> None:
        """Put the random generators back to where they were after the last complete step."""

    def stopped(self) -> StoppedBySignal:
        """How the run ends, saved or not."""
        return StoppedBySignal("stopped")


def always() -> list[Extension]:
    """The extensions of every training that are there."""
    return [extension() for name in ALWAYS if (extension := found(name))]


def on_request(flags: Any) -> list[Extension]:
    """The extensions that a command line's values ask for; `UsageError` where one is not there."""
    return [wing(name, f"--{flag}")() for flag, name in ON_REQUEST.items() if getattr(flags, flag, None)]
