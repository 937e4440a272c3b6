"""Makes the two small models that tests and `run_tiny.sh` use: `python -m helper.make_tiny_models --output assets`.

Writes `tiny_llama` (a LLaMA with its sentencepiece tokenizer, trained on dialogues in words) and `tiny_clip` (a CLIP
trained on images and captions) as ordinary Hugging Face folders, in some minutes. They serve formats and speed of
tests, not accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.commands import Parser, command, end_process, writable_folder


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="python -m helper.make_tiny_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("assets"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400, help="of each model (default: %(default)s)")
    arguments = parser.parse_args(argv)
    writable_folder(arguments.output, "--output")
    from helper.miniature.models import make_decoder, make_encoder  # takes seconds: torch

    make_encoder(arguments.output / "tiny_clip", arguments.steps, arguments.seed)
    make_decoder(arguments.output / "tiny_llama", arguments.steps, arguments.seed)


if __name__ == "__main__":
    end_process(main())
