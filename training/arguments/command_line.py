"""Reading the command line of training, and of the programs that take its flags.

`--help` lists the project's own flags from their definitions in `training.arguments`, and imports neither torch nor
transformers; `--help_all` lists transformers' flags too.
"""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from training.arguments import DataArguments, ModelArguments, RunArguments
from utils.commands import UsageError

if TYPE_CHECKING:
    from training.arguments.parser import Parser, VisualChatTrainingArguments

_TRANSFORMERS_FLAGS = (
    "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments"
)
_GROUPS = {"model": ModelArguments, "data": DataArguments, "training": RunArguments}

PROGRAM = "python -m training.main"

T = TypeVar("T")
AddFlags = Callable[[argparse.ArgumentParser], None]
"""Adds a program's own flags to those of training."""


def answer_help(
    argv: Sequence[str] | None,
    prog: str = PROGRAM,
    description: str | None = None,
    add_flags: AddFlags | None = None,
) -> None:
    """Print the flags and end the program with code 0, where the command line asks for that."""
    words = sys.argv[1:] if argv is None else argv
    if "--help" not in words and "-h" not in words:
        return
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} --lm_model_name_or_path FOLDER_OR_NAME [flags]",
        description=description,
        epilog=f"The flags of transformers' TrainingArguments work too; --help_all lists them: {_TRANSFORMERS_FLAGS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if add_flags:
        add_flags(parser)
    for title, kind in _GROUPS.items():
        group, types = parser.add_argument_group(title), get_type_hints(kind)
        for field in dataclasses.fields(kind):
            value = types[field.name]
            group.add_argument(f"--{field.name}", metavar=_values(value), help=_described(field, value))
    parser.print_help()
    raise SystemExit(0)


def _values(kind: Any) -> str:
    """What may stand after a flag of that type, in a word: a number, a choice."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if kind is bool:
        return "true|false"
    if get_origin(kind) is list:
        return f"{_values(get_args(kind)[0])} ..."
    inner = [each for each in get_args(kind) if each is not type(None)]
    return _values(inner[0]) if inner else {int: "N", float: "X"}.get(kind, "TEXT")


def _described(field: dataclasses.Field, kind: Any) -> str:
    text = field.metadata["help"]
    factory = field.default_factory
    default = factory() if callable(factory) and get_origin(kind) is list else field.default
    if default in (dataclasses.MISSING, None, []):
        return text.replace("%", "%%")
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return f"{text} (default: {shown.lower() if isinstance(default, bool) else shown})".replace("%", "%%")


def parse_flags(
    argv: Sequence[str] | None,
    prog: str = PROGRAM,
    description: str | None = None,
    add_flags: AddFlags | None = None,
) -> tuple["Parser", argparse.Namespace]:
    """The values of a command line of training's flags and the program's own, and the parser that knows their defaults.

    `--help` ends the program, and so does a mistake, with code 2 and one line that says what to do.
    """
    answer_help(argv, prog, description, add_flags)
    from training.arguments.parser import Parser

    parser = Parser(prog, description)
    if add_flags:
        add_flags(parser)
    return parser, _parsed(parser, argv)


def training_arguments(
    parser: "Parser", flags: argparse.Namespace
) -> tuple[ModelArguments, DataArguments, "VisualChatTrainingArguments"]:
    """What a training takes, from `parse_flags`; starts the process group, and ends the program as that does."""
    from training.arguments.parser import VisualChatTrainingArguments
    from utils.distributed import initialise

    initialise(use_cpu=flags.use_cpu)
    try:
        model, data = model_and_data(flags)
        training = arguments_of(VisualChatTrainingArguments, flags)
        if data.packing and training.train_sampling_strategy == "group_by_length":
            raise UsageError(
                "--packing fills every row, so there is no length to group by: leave out one of them"
            )
        if any(model.frozen_bits):
            model.require_whole(training.zero_stage)
            if find_spec("bitsandbytes") is None:
                raise UsageError("--frozen_bits needs the package bitsandbytes: pip install bitsandbytes")
            # Merged or whole weights are in no precision that the run has: `visualchat export` makes them.
            training.checkpoint_form = training.epoch_checkpoint_form = "trained"
        if data.cache_vision_features and "encoder" in model.train:
            raise UsageError(
                "--cache_vision_features needs an encoder that stays as it is: leave it out, or encoder in --train"
            )
        return model, data, training
    except ValueError as error:
        parser.error(" ".join(str(error).split()))


def arguments_of(kind: type[T], flags: argparse.Namespace) -> T:
    """The arguments of that kind among a command line's values; `UsageError` where they contradict each other."""
    known: Any = kind  # a dataclass
    return kind(
        **{field.name: getattr(flags, field.name) for field in dataclasses.fields(known) if field.init}
    )


def model_and_data(flags: argparse.Namespace) -> tuple[ModelArguments, DataArguments]:
    """The arguments of model and data; `UsageError` where they contradict, or name what cannot be there."""
    model = arguments_of(ModelArguments, flags)
    model.require_plausible_names()
    return model, arguments_of(DataArguments, flags)


def _parsed(parser: "Parser", argv: Sequence[str] | None) -> argparse.Namespace:
    """The values of a command line; ends the program where a word of it is not known."""
    argv = _as_today(list(sys.argv[1:] if argv is None else argv))
    flags, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if word.startswith("-"):
            known = difflib.get_close_matches(word.split("=")[0], parser._option_string_actions, n=1)
            hint = f"did you mean {known[0]}?" if known else "--help lists all flags"
            parser.error(f"unknown flag {word}: {hint}")
    if unknown:
        parser.error(f"unexpected word {unknown[0]}: a flag may be missing before it")
    return flags


def _as_today(argv: list[str]) -> list[str]:
    """Bare `--deepspeed` (2023: use DeepSpeed, which is always used now) and `--resume_from_checkpoint` (the
    newest).
    """
    words = []
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        bare = following.startswith("--")
        if word == "--deepspeed" and bare:
            continue
        words.append(word)
        if word == "--resume_from_checkpoint" and bare:
            words.append("True")
    return words
