"""Train a visual chat model: `deepspeed --module training.main`, torchrun, or `python -m training.main`."""

from collections.abc import Sequence

from training.command_line import answer_help
from utils.commands import command, end_process


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run a training from its command line; returns an exit code of `training.survival.leaving`."""
    answer_help(argv, description=__doc__)
    from training.run import main as train  # takes seconds: torch, transformers, DeepSpeed

    return train(argv)


if __name__ == "__main__":
    end_process(main())
