"""Draws the miniature world: `python -m helper.make_tiny_world --output data/miniature`.

Writes pictures and dialogues in the published datasets' layout (see `helper.miniature.world`), and a held-out
evaluation set. With `--layouts all` it writes a few records in the layout of every dataset that training knows
by name, and in the shapes of own data (see `helper.miniature.published`): to try a dataset without fetching it.

The same options and seed always give the same files; a world already there is kept.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from helper.miniature.world import WorldSize, write_world
from utils.commands import Parser, command, complain, end_process, writable_folder

_FOLDERS = {"llava": Path("data/miniature"), "all": Path("data/layouts")}


@command
def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(
        prog="python -m helper.make_tiny_world",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--layouts", choices=tuple(_FOLDERS), default="llava")
    parser.add_argument("--output", type=Path, help="default: data/miniature, or data/layouts for all")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument(
        "--records",
        type=int,
        default=12,
        help="records of each dataset, with --layouts all (default: %(default)s)",
    )
    for field in fields(WorldSize):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    arguments = vars(parser.parse_args(argv))
    layouts, seed, records = (arguments.pop(name) for name in ("layouts", "seed", "records"))
    root = arguments.pop("output") or _FOLDERS[layouts]
    writable_folder(root.parent, "--output")
    try:
        if layouts == "all":
            from helper.miniature.published import write_layouts  # takes seconds: the library datasets

            written = write_layouts(root, records, seed)
        else:
            written = write_world(root, WorldSize(**arguments), seed)
    except (FileExistsError, ValueError) as error:
        return complain(error)
    print(f"{root}: {'drawn' if written else 'already there, kept'}")
    return 0


if __name__ == "__main__":
    end_process(main())
