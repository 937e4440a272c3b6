"""Work on every item of a dataset, spread over the cores of this machine."""

import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from utils.data.progress import progress
from utils.data.shielded_workers import shielded
from utils.distributed import cores, get_logger

logger = get_logger(__name__)

_Item = TypeVar("_Item", covariant=True)

_BATCH = 256
_WORTH_WORKERS = 5000  # items; fewer are done sooner than workers have started


def each_item(items: Dataset[_Item], description: str) -> Iterator[_Item]:
    """All items in order, made by as many processes as this one may use cores, with `progress` on the way.

    What raises in a worker raises here.
    """
    total = len(items)
    workers = cores() if total >= _WORTH_WORKERS else 0
    start = time.perf_counter()
    # A generator of its own: the global one must stay in step with other processes, who do not come here.
    batches = DataLoader(
        items,
        _BATCH,
        generator=torch.Generator().manual_seed(0),
        **shielded(workers, list),
    )
    with progress(description, total) as advance:
        for batch in batches:
            yield from batch
            advance(len(batch))
    if workers:
        logger.info("%s: %s in %.0f s", description, f"{total:,}", time.perf_counter() - start)
