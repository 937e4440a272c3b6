"""Compare attentions on real pretrained parts: `python -m helper.compare` (or `make compare`).

Each form of attention learns, from a random projection, from the same samples with the same seeds, at the learning rate
that a small search finds for it, and is asked about images in a style that was held out. Results are kept in
docs/comparison.jsonl, a line for each training, as they come: run it again to go on, or with more seeds or forms.

Writes docs/comparison.md and docs/images/comparison.png. --without_adapters and another --decoder
are comparisons of their own, whose files are called so too; the first decoder's page has a section on the other.
"""

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from helper.comparison.cells import DECODERS, FORMS, Cell, Plan, Results, Row
from utils.commands import ROOT, Parser, command, end_process, writable_folder

SEEDS = (1, 2, 3, 4, 5)
console = Console(highlight=False, soft_wrap=True)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, then write page and chart."""
    parsed = _parser().parse_args(argv)
    plan = (Plan.without_adapters if parsed.without_adapters else Plan)(decoder=parsed.decoder)
    docs = writable_folder(parsed.docs.resolve(), "--docs")
    name = "comparison" + "_without_adapters" * parsed.without_adapters
    name += f"_{plan.decoder}" * (plan.decoder != "smollm2")
    results = Results(docs / f"{name}.jsonl", plan.settings)
    if not parsed.only_page:
        from helper.comparison.task import task_of  # here: torch takes seconds

        task_of(parsed.parts, plan)  # once, before several processes ask for it
        _train([Cell(form, 0, rate) for form in parsed.forms for rate in plan.rates], plan, results, parsed)
        _train([Cell(form, seed) for seed in parsed.seeds for form in parsed.forms], plan, results, parsed)
    write_page(results, docs, name)


def _train(cells: Sequence[Cell], plan: Plan, results: Results, parsed: argparse.Namespace) -> None:
    """Those not done yet, each in one of several processes of a single thread; what is done is kept at once."""
    cells = [cell for cell in cells if cell not in results.rows]
    if not cells:
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    pool = ProcessPoolExecutor(parsed.workers, mp_context=get_context("spawn"))
    try:
        running = {
            pool.submit(
                outcome_of, cell, cell.rate or results.rate(cell.form, plan), plan, parsed.parts
            ): cell
            for cell in cells
        }
        for number, done in enumerate(as_completed(running), start=1):
            cell, row = running[done], done.result()
            results.add(cell, row)
            losses = f"loss {row['losses'][0]:.2f} to {row['losses'][-1]:.2f}"
            console.print(f"{number}/{len(cells)}  {cell}: {losses}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def outcome_of(cell: Cell, rate: float, plan: Plan, parts: Path) -> Row:
    """Train and ask one cell in this process."""
    from helper.comparison import learning  # here: torch and transformers take seconds
    from helper.comparison.task import task_of

    task = task_of(parts, plan)
    if cell.rate:
        return learning.search(FORMS[cell.form], rate, plan, task)
    return learning.compare(FORMS[cell.form], rate, cell.seed, plan, task)


def write_page(results: Results, docs: Path, name: str = "comparison") -> None:
    """The page and its chart, of all that is known."""
    from helper.comparison.page import draw, page
    from utils.atomic import atomic_write

    rows = results.compared()
    if not rows:
        console.print("no training is done yet: no page")
        return
    second: list[Row] = []
    if results.settings["decoder"] == "smollm2":
        other = {**results.settings, "decoder": "gemma3"}
        second = Results(docs / f"{name}_gemma3.jsonl", other).compared()
    draw(rows, docs / "images" / f"{name}.png")
    atomic_write(docs / f"{name}.md", page(rows, name, second))
    console.print(f"{docs / name}.md", style="dim", markup=False)


def _parser() -> Parser:
    parser = Parser(prog="python -m helper.compare", description=__doc__)
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=FORMS,
        default=list(FORMS),
        metavar="FORM",
        help=f"of {', '.join(FORMS)}; default: all",
    )
    parser.add_argument(
        "--without_adapters",
        action="store_true",
        help="projection, embedding and gate learn alone; another page",
    )
    parser.add_argument(
        "--decoder",
        choices=DECODERS,
        default="smollm2",
        help="one of two; another page (default: %(default)s)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, a core each")
    parser.add_argument(
        "--parts", type=Path, default=ROOT / "data" / "comparison", help="pretrained parts; made if not there"
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results, page and chart go")
    parser.add_argument(
        "--only_page", action="store_true", help="write the page of the results that are there"
    )
    return parser


if __name__ == "__main__":
    end_process(main())
