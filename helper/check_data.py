"""Looks at the data before training does: `python -m helper.check_data` with the flags of training.

Reads every record and decodes every picture, in all processor cores, and writes one page of HTML: what the
datasets hold, what is bad in them, whether training would go on, and conversations as the model is taught them.
Beside it goes the list of bad records, as training writes it. Flags of training that have nothing to do with
the data are taken too, and change nothing; with --strict everything is checked all the same.

Ends with code 0 where training would go on, with 1 where bad data would stop it, and with 2 for a wrong flag or
missing files.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from training.command_line import read_flags
from utils.commands import command, end_process


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Check the data that a training's command line names; returns the exit code."""
    flags = read_flags(argv, "python -m helper.check_data", __doc__, _add_flags)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are processes already
    from transformers.utils.logging import set_verbosity_error

    from training.data_report.check import check
    from utils.distributed import configure_logging

    configure_logging()
    set_verbosity_error()
    return check(flags)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("of the check alone")
    own.add_argument(
        "--report", help="File to write the page to; otherwise data_report.html in {output_dir}."
    )
    own.add_argument("--report_samples", type=int, default=12, help="Conversations to show (default: 12).")
    own.add_argument(
        "--check_workers",
        type=int,
        help="Processes that read and decode; 0: none beside this one (default: one for each core).",
    )


if __name__ == "__main__":
    end_process(main())
