"""Draw the pictures of the evaluation sets into eval/eval_data/image: `python -m eval.pictures.make
[--folder F]`.

The photographs beside them come from scikit-image; eval/eval_data/SOURCES.md names source and licence of
each.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import PIL.Image

from eval.pictures import documents, puzzles, scenes
from utils.commands import ROOT, Parser, command, end_process, writable_folder

FOLDER = ROOT / "eval" / "eval_data" / "image"

DRAWINGS: dict[str, Callable[[], PIL.Image.Image]] = {
    "street_day": lambda: scenes.street(evening=False),
    "street_evening": lambda: scenes.street(evening=True),
    "beach": scenes.beach,
    "kitchen": scenes.kitchen,
    "comic_1": lambda: scenes.comic(1),
    "comic_2": lambda: scenes.comic(2),
    "comic_3": lambda: scenes.comic(3),
    "comic_4": lambda: scenes.comic(4),
    "poster_concert": documents.poster_concert,
    "poster_library": documents.poster_library,
    "menu": documents.menu,
    "timetable": documents.timetable,
    "bar_chart": documents.bar_chart,
    "line_chart": documents.line_chart,
    "pie_chart": documents.pie_chart,
    "clock_red": lambda: puzzles.clock(10, 10, "#c0392b"),
    "clock_blue": lambda: puzzles.clock(3, 40, "#2f62d8"),
    "town_map": puzzles.town_map,
    "shapes_1": lambda: puzzles.shapes(second=False),
    "shapes_2": lambda: puzzles.shapes(second=True),
    "tic_tac_toe": puzzles.tic_tac_toe,
    "dice": puzzles.dice,
    "sign": puzzles.sign,
    "blank": puzzles.blank,
    "noise": puzzles.noise,
}
"""File name (without .png) to the function that draws it."""


def make(folder: Path) -> list[Path]:
    """Draw every picture as PNG into `folder`; the same files each time. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in DRAWINGS.items():
        paths.append(folder / f"{name}.png")
        draw().save(paths[-1], optimize=True)
    return paths


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where the PNG files go (default: %(default)s)"
    )
    paths = make(writable_folder(parser.parse_args(arguments).folder, "--folder"))
    print(f"drew {len(paths)} pictures, {sum(path.stat().st_size for path in paths) / 1024:.0f} KiB in all")


if __name__ == "__main__":
    end_process(main())
