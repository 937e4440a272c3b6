"""The whole command line of training: its own flags over all of transformers' `TrainingArguments`."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from transformers import HfArgumentParser, TrainingArguments

from training.arguments import DataArguments, ModelArguments, RunArguments
from utils.commands import complain
from utils.plugins import load_plugins


@dataclass
class VisualChatTrainingArguments(RunArguments, TrainingArguments):
    """transformers' `TrainingArguments`, with the project's own flags and defaults before them."""


class Parser(HfArgumentParser):
    """Takes all flags of training; a mistake costs one line, not 200 lines of usage."""

    def __init__(self, prog: str = "python -m training.main", description: str | None = None) -> None:
        types = (ModelArguments, DataArguments, VisualChatTrainingArguments)
        super().__init__(types, prog=prog, description=description, allow_abbrev=False)
        self.add_argument(
            "--help_all", action="help", help="Show these flags and all of transformers' as well."
        )

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does; what plugins register is known from here on."""
        flags, rest = super().parse_known_args(args, namespace)
        load_plugins(flags.plugin or ())
        return flags, rest

    def error(self, message: str) -> NoReturn:
        """End the program with code 2 and a line that the main process prints."""
        # Of the two ways to write a flag the documented one.
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)
        raise SystemExit(complain(re.sub(r"^argument (--\w+):", r"\1:", message)))
