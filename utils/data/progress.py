"""A bar for work that is measured in bytes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


@contextmanager
def byte_bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show how far reading has got, on a terminal; elsewhere nothing. Yields what takes the bytes just read."""
    with tqdm(
        total=total,
        desc=label,
        unit="B",
        unit_scale=True,
        dynamic_ncols=True,
        leave=False,
        disable=not sys.stderr.isatty(),
    ) as bar:
        yield bar.update
