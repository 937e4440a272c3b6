"""The whole command line of training: its own flags over all of transformers' `TrainingArguments`."""

import re
import sys
from dataclasses import dataclass

from transformers import HfArgumentParser, TrainingArguments

from training.arguments import DataArguments, ModelArguments, RunArguments
from utils.distributed import is_main_process


@dataclass
class VisualChatTrainingArguments(RunArguments, TrainingArguments):
    """transformers' `TrainingArguments`, with the project's own flags and defaults before them."""


class Parser(HfArgumentParser):
    """Takes all flags of training; a mistake costs one line, not 200 lines of usage."""

    def __init__(self, prog: str = "python -m training.main", description: str | None = None) -> None:
        types = (ModelArguments, DataArguments, VisualChatTrainingArguments)
        super().__init__(types, prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--help_all", action="help", help="List these flags, transformers' own included.")

    def error(self, message: str) -> None:
        """End the program with code 2 and a line that the main process prints."""
        if is_main_process():
            print("error:", re.sub(r"^argument (--\w+)\S*:", r"\1:", message), file=sys.stderr)
        raise SystemExit(2)
