"""What a training consists of once it is prepared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin, TrainerState

from training.arguments.parser import VisualChatTrainingArguments


@dataclass(frozen=True)
class RunContext:
    """All that writing checkpoints and the dry run need of a trainer: its parts, and no way back to it."""

    engine: Any  # DeepSpeed's
    state: TrainerState
    args: VisualChatTrainingArguments
    model: PreTrainedModel
    processor: ProcessorMixin
    schedule: Any  # of the learning rate: torch's, DeepSpeed's, or accelerate's wrapper of it
    save_random_state: Callable[[str], None]  # this process's, into a folder, as transformers reads it
