"""Compare attentions in the miniature world: `python -m helper.compare` (or `make compare`).

Trains mmca, causal and cross on the same records with the same seeds, through the real pipeline, and evaluates each on
held-out dialogues. What is finished is kept in {output}/outcomes.json: run it again to go on, or with more seeds or
sizes to add to it. Values of run_tiny.sh can be set from the environment, the same for all: EPOCHS=2 make compare.

Writes docs/comparison.md and docs/images/comparison.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from helper.comparison.cells import ROOT, ComparisonError, Outcomes, grid, settings_of
from helper.comparison.chart import draw
from helper.comparison.page import ATTENTIONS, accuracy_table, page
from helper.comparison.training import records_in, shared_out, train_and_score
from helper.miniature.world import WorldSize, write_world
from training.run_report.summary import as_text
from utils.atomic import atomic_write
from utils.commands import Parser, command, complain, end_process, writable_folder

SEEDS = (1, 2, 3)
_SHARES = (8, 4, 2, 1)  # of the world: an eighth, ..., all
_WORLD_SEED = 1234
console = Console(highlight=False, soft_wrap=True)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 where a training failed or cannot begin."""
    parsed = _parser().parse_args(argv)
    try:
        _compare(parsed)
    except (ComparisonError, FileExistsError) as error:
        complain(error)
        return 1
    return 0


def _compare(parsed: argparse.Namespace) -> None:
    data, output, docs = (path.resolve() for path in (parsed.data, parsed.output, parsed.docs))
    writable_folder(output, "--output")
    if not (data / "world.json").is_file():
        write_world(data, WorldSize(), _WORLD_SEED)
    sizes = parsed.samples or [sum(records_in(data)) // share for share in _SHARES]
    for samples in sizes:
        shared_out(samples, data)  # a wrong number is told now, not after hours
    cells = grid(parsed.attentions, sizes, parsed.seeds)
    outcomes = Outcomes(output / "outcomes.json", settings_of(data))
    for number, cell in enumerate(cells, start=1):
        place = f"{number}/{len(cells)}  {cell}"
        if cell in outcomes:
            console.print(f"{place}: kept", style="dim")
            continue
        console.print(f"{place} ...")
        outcome = train_and_score(cell, data, output / cell.folder)
        outcomes.add(outcome)
        minutes = f"{outcome.steps} steps, {outcome.seconds / 60:.1f} minutes"
        console.print(f"    {outcome.accuracy:.1%} right, {minutes}")
    found = outcomes.of(cells)
    picture = Path("images") / "comparison.png"
    draw(found, docs / picture)
    atomic_write(docs / "comparison.md", page(found, outcomes.settings, picture.as_posix()))
    for line in as_text(accuracy_table(found)):
        console.print(line, markup=False)
    console.print(f"{docs / 'comparison.md'}, {docs / picture}", style="dim", markup=False)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m helper.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--attentions", nargs="+", choices=ATTENTIONS, default=list(ATTENTIONS))
    parser.add_argument(
        "--samples",
        nargs="+",
        type=int,
        help="training records; default: an eighth of the world to all of it",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--data", type=Path, default=ROOT / "data" / "miniature", help="drawn if it is not there"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "comparison")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page and its picture go")
    return parser


if __name__ == "__main__":
    end_process(main())
