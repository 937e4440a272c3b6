"""What a training consists of once it is prepared, and the state of its random generators."""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin, TrainerState
from transformers.trainer_callback import CallbackHandler

from training.arguments.parser import VisualChatTrainingArguments
from utils.data import Batch


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
