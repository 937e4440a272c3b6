"""How far a long work has got: a bar on a terminal, and a line now and then in a log file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tqdm.auto import tqdm

from utils.distributed import get_logger

logger = get_logger(__name__)

LINE_EVERY = 30.0
"""Seconds between two lines, where there is no terminal."""


@contextmanager
def progress(label: str, total: int, unit: str = "", keep: bool = False) -> Iterator[Callable[..., None]]:
    """Show how far work on `total` things has got; a bar stays when all is done where `keep` says so.

    Yields what takes how many were just done, and counts to show beside them by their names (`bad=3`). The
    unit "B" stands for bytes.
    """
    is_terminal = sys.stderr.isatty()
    in_words = in_units if unit == "B" else "{:,}".format
    start = said = time.perf_counter()
    done = 0
    with tqdm(
        total=total,
        desc=label,
        unit=unit if unit == "B" else f" {unit or 'items'}",
        unit_scale=unit == "B",
        dynamic_ncols=True,
        leave=keep,
        disable=not is_terminal,
    ) as bar:

        def advance(count: int, **beside: int) -> None:
            nonlocal done, said
            done += count
            if beside:
                bar.set_postfix(beside, refresh=False)
            bar.update(count)
            now = time.perf_counter()
            if not is_terminal and now - said >= LINE_EVERY:
                said = now
                things = f" {unit}" if unit and unit != "B" else ""
                others = "".join(f", {number:,} {name}" for name, number in beside.items())
                words = f"{in_words(done)} of {in_words(total)}{things}{others}"
                logger.info("%s: %s in %.0f s", label, words, now - start)

        yield advance


def byte_bar(label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """`progress` of reading, which is measured in bytes."""
    return progress(label, total, "B")


def in_units(count: float) -> str:
    """Bytes as people write them: 3.2 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
