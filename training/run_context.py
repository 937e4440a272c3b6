"""What a training consists of once it is prepared."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

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
