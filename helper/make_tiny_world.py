"""Draws the miniature world: `python -m helper.make_tiny_world --output data/miniature`.

Writes pictures and dialogues in the published datasets' layout (see `helper.miniature.world`), and a held-out
evaluation set. The same options and seed always give the same world; a world already there is kept.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from helper.miniature.world import WorldSize, write_world


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("data/miniature"))
    parser.add_argument("--seed", type=int, default=1234)
    for field in fields(WorldSize):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    arguments = vars(parser.parse_args(argv))
    root, seed = arguments.pop("output"), arguments.pop("seed")
    try:
        written = write_world(root, WorldSize(**arguments), seed)
    except FileExistsError as error:
        sys.exit(f"make_tiny_world: {error}")
    print(f"{root}: {'drawn' if written else 'already there, kept'}")


if __name__ == "__main__":
    main()
