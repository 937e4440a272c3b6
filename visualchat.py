"""One command for everything: `visualchat train|chat|web|serve|eval|report|check|plan|export|demo`.

`pip install -e .` installs it; `python -m visualchat` does the same in the repository. Each name stands for a module,
whose flags follow. `train`, `check` and `plan` also take a recipe, a file of training's flags:

    visualchat train 7b data_path=/data output_dir=/runs/7b

DRY_RUN=1 before it shows what that training would need, and stops.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from utils.commands import command, complain, end_process

__version__ = "0.2.0"

COMMANDS = {
    "train": ("training.main", "train a model, by a recipe or by flags"),
    "chat": ("chat.chat", "talk to a checkpoint at the terminal"),
    "web": ("chat.web", "talk to a checkpoint on a web page"),
    "serve": ("chat.serving.__main__", "serve a checkpoint to OpenAI clients"),
    "eval": ("eval.batch_generation", "answer and score evaluation dialogues"),
    "report": ("eval.report", "make a page of evaluation results"),
    "check": ("helper.check_data", "look at the training data before training"),
    "plan": ("helper.plan_memory", "see whether a training fits into memory"),
    "export": ("helper.export_checkpoint", "turn a checkpoint into another form"),
    "demo": ("helper.demo", "train real pretrained parts on a CPU, evaluate, and talk"),
}
"""Name: the module whose `main` takes the flags, and what it does."""

TAKE_RECIPES = {"train", "check", "plan"}

USAGE = f"""usage: visualchat COMMAND [flags]

{chr(10).join(f"  {name:8}{text}" for name, (_, text) in COMMANDS.items())}

visualchat COMMAND --help lists the flags of a command. {", ".join(sorted(TAKE_RECIPES))} also take a recipe and
changes to it: visualchat train 7b data_path=/data output_dir=/runs/7b. visualchat --version prints the version."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names with the words after it; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        return complain(f"which command? {_choices()} (see visualchat --help)")
    name, *rest = words
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if name == "--version":
        print(f"visualchat {__version__}")
        return 0
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        return complain(f"there is no command {name}: {f'did you mean {close[0]}?' if close else _choices()}")
    if name in TAKE_RECIPES and rest and not rest[0].startswith("-"):
        from training.recipe import flags_of, start_processes

        rest, processes = flags_of(rest)
        is_dry = name == "train" and os.environ.get("DRY_RUN") == "1"
        if name == "plan" or is_dry:
            rest = [*processes.plan_flags, *rest]
        elif name == "train":
            start_processes(processes, rest)
        if is_dry:
            return importlib.import_module("helper.dry_run").main(rest)
    return importlib.import_module(COMMANDS[name][0]).main(rest)


def _choices() -> str:
    return f"choose {', '.join(COMMANDS)}"


def run() -> None:
    """The console script: the process ends with the command's exit code."""
    end_process(main())


if __name__ == "__main__":
    run()
