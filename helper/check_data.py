"""Checks the data before training: `python -m helper.check_data` with the flags of training.

Reads every record and decodes every image, on all cores, and writes one HTML page: what the datasets hold, which
records are bad and why, whether training would start, and conversations with their supervised tokens. The list of
bad records is written beside the page, as training writes it. Flags of training that do not concern the data are
accepted and have no effect; --strict does not end the check early.

Exit codes: 0 if training would start, 1 if bad data would stop it, 2 for a wrong flag or missing files.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from training.arguments.command_line import parse_flags
from utils.commands import command, end_process


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Check the data that a training's command line names; returns the exit code."""
    flags = parse_flags(argv, "python -m helper.check_data", __doc__, _add_flags)[1]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are processes already
    from transformers.utils.logging import set_verbosity_error

    from training.data_report.check import check
    from utils.distributed import configure_logging

    configure_logging()
    set_verbosity_error()
    return check(flags)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("check")
    own.add_argument("--report", help="File to write the page to (default: {output_dir}/data_report.html).")
    own.add_argument("--report_samples", type=int, default=12, help="Conversations to show (default: 12).")
    own.add_argument(
        "--check_workers",
        type=int,
        help="Worker processes; 0: work in the main process (default: one per core).",
    )


if __name__ == "__main__":
    end_process(main())
