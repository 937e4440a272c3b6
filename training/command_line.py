"""Reading the command line of training."""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Sequence

from transformers import HfArgumentParser

from training.arguments import DataArguments, ModelArguments, UsageError, VisualChatTrainingArguments
from utils.distributed import initialise, is_main_process


class Parser(HfArgumentParser):
    """Takes all flags of training; a mistake costs one line, not 200 lines of usage."""

    def __init__(self, prog: str = "python -m training.main", description: str | None = None) -> None:
        types = (ModelArguments, DataArguments, VisualChatTrainingArguments)
        super().__init__(types, prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> None:
        """End the program with code 2 and a line that the main process prints."""
        if is_main_process():
            print("error:", re.sub(r"^argument (--\w+)\S*:", r"\1:", message), file=sys.stderr)
        raise SystemExit(2)


def parse_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[ModelArguments, DataArguments, VisualChatTrainingArguments]:
    """Read the command line, and start the process group, which the training arguments need.

    A mistake ends the program with code 2 and one line that says what to do.
    """
    parser = Parser()
    argv = _known(parser, argv)
    initialise(use_cpu="--use_cpu" in argv)
    try:
        model, data, training = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        if data.packing and training.train_sampling_strategy == "group_by_length":
            raise UsageError(
                "--packing fills every row, so there is no length to group by: leave out one of them"
            )
        return model, data, training
    except ValueError as error:
        parser.error(" ".join(str(error).split()))


def read_flags(parser: Parser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's values without what training does about them; mistakes end as above."""
    return parser.parse_args(_known(parser, argv))


def model_and_data(flags: argparse.Namespace) -> tuple[ModelArguments, DataArguments]:
    """The arguments of model and data among the values of `read_flags`; `UsageError` where they contradict."""
    return tuple(
        kind(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(kind)})
        for kind in (ModelArguments, DataArguments)
    )


def _known(parser: Parser, argv: Sequence[str] | None) -> list[str]:
    """The words of the command line, in today's form; ends the program where one is not known."""
    argv = _as_today(list(sys.argv[1:] if argv is None else argv))
    _, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if word.startswith("-"):
            known = difflib.get_close_matches(word.split("=")[0], parser._option_string_actions, n=1)
            hint = f"did you mean {known[0]}?" if known else "--help lists all flags"
            parser.error(f"unknown flag {word}: {hint}")
    if unknown:
        parser.error(f"unexpected word {unknown[0]}: a flag may be missing before it")
    return argv


def _as_today(argv: list[str]) -> list[str]:
    """Bare `--deepspeed` (2023: use DeepSpeed, which is always used now) and `--resume_from_checkpoint` (the
    newest).
    """
    words = []
    for word, following in zip(argv, [*argv[1:], "--"], strict=True):
        bare = following.startswith("--")
        if word == "--deepspeed" and bare:
            continue
        words.append(word)
        if word == "--resume_from_checkpoint" and bare:
            words.append("True")
    return words
