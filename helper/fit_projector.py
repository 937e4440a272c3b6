"""Fits a linear projection to captions in closed form: `python -m helper.fit_projector` with the flags of training.

A random projection has to find by gradient descent which directions of the encoder mean which words, and can end in a
poor optimum. Captions give it directly (`helper.caption_alignment`).

Reads conversations with one image whose first answer is its caption, and writes a checkpoint in the trained form to
`--output_dir`; start training from it with `--init_from`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from training.command_line import read_flags
from utils.commands import command, complain, end_process


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Fit, write and say how well it fits; returns the exit code."""
    flags = read_flags(argv, "python -m helper.fit_projector", __doc__, _add_flags)
    from transformers.utils.logging import set_verbosity_error

    from helper.projector_fit import fit
    from utils.conversation import ConversationError
    from utils.data import BadDataError
    from utils.distributed import configure_logging

    configure_logging()
    set_verbosity_error()
    try:
        fit(flags)
    except (BadDataError, ConversationError, OSError, ValueError) as error:
        return complain(error)
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("fit")
    own.add_argument(
        "--ridge",
        type=float,
        default=1e-3,
        help="Strength of the ridge (L2) penalty on the projection (default: 0.001).",
    )
    own.add_argument(
        "--rounds",
        type=int,
        default=20,
        help="Maximum rounds of assigning phrases to image tokens; 0: none (default: 20).",
    )


if __name__ == "__main__":
    end_process(main())
