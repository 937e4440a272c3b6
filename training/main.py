"""Train a visual chat model: `deepspeed --module training.main`, torchrun, or `python -m training.main`."""

if not __package__:  # called as a file, as in 2023: the module starts, and finds the project's others
    import os
    import sys
    from pathlib import Path

    root = str(Path(__file__).resolve().parents[1])
    before = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(PYTHONPATH=os.pathsep.join(before), PYTHONSAFEPATH="1")
    python = sys.orig_argv[: -len(sys.argv)]  # with its own options
    os.execv(sys.executable, [*python, "-m", "training.main", *sys.argv[1:]])

from collections.abc import Sequence

from training.arguments.command_line import answer_help
from utils.commands import command, end_process


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run a training from its command line; returns an exit code of `training.exit_codes`."""
    answer_help(argv, description=__doc__)
    from training.run import main as train  # takes seconds: torch, transformers, DeepSpeed

    return train(argv)


if __name__ == "__main__":
    end_process(main())
