"""Work on every item of a dataset, spread over the cores of this machine."""

import os
import sys
import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from utils.distributed import get_logger

logger = get_logger(__name__)

_Item = TypeVar("_Item", covariant=True)

_BATCH = 256
_WORTH_WORKERS = 5000  # items; fewer are done sooner than workers have started


def each_item(items: Dataset[_Item], description: str) -> Iterator[_Item]:
    """All items in order, made by as many processes as this one may use cores, with a bar on a terminal.

    What raises in a worker raises here.
    """
    total = len(items)
    workers = cores() if total >= _WORTH_WORKERS else 0
    start = time.perf_counter()
    # A generator of its own: the global one must stay in step with other processes, who do not come here.
    batches = DataLoader(
        items, _BATCH, num_workers=workers, collate_fn=list, generator=torch.Generator().manual_seed(0)
    )
    with tqdm(total=total, desc=description, leave=False, disable=not sys.stderr.isatty()) as bar:
        for batch in batches:
            yield from batch
            bar.update(len(batch))
    if workers:
        logger.info("%s: %s in %.0f s", description, f"{total:,}", time.perf_counter() - start)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
