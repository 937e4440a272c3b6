"""Draws the miniature world: `python -m helper.make_tiny_world --output data/miniature`.

Writes images and dialogues in the layout of every dataset that training knows by name and in the shapes of own data,
and an evaluation set (see `helper.miniature.published`): to try any of them without fetching it.

The same options always give the same files; a world already there is kept.
"""

from __future__ import annotations

from pathlib import Path

from utils.commands import Parser, command, complain, end_process, writable_folder


@command
def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="python -m helper.make_tiny_world", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("data/miniature"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1234, help="default: %(default)s")
    parser.add_argument("--records", type=int, default=300, help="of each dataset (default: %(default)s)")
    arguments = parser.parse_args(argv)
    root = arguments.output
    writable_folder(root.parent, "--output")
    from helper.miniature.published import write_layouts  # takes seconds: the library datasets

    try:
        written = write_layouts(root, arguments.records, arguments.seed)
    except (FileExistsError, ValueError) as error:
        return complain(error)
    print(f"{root}: {'drawn' if written else 'already there, kept'}")
    return 0


if __name__ == "__main__":
    end_process(main())
