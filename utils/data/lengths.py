"""How long conversations are, in tokens and images: counted once, by all cores, and kept in the cache.

Packing and length grouping need to know all lengths of an epoch before it begins. Counting is rendering and
tokenising without reading an image: some thousand conversations a second on a core.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from utils.atomic import atomic_directory
from utils.data.cache import cache_folder
from utils.data.encode import Encoded
from utils.data.spec import DataError
from utils.distributed import get_logger

logger = get_logger(__name__)

_FORMAT = 1  # raise it when other lengths would be counted, and old entries are passed over
_FILE = "lengths.npz"
_BATCH = 256
_WORTH_WORKERS = 5000  # conversations; fewer are counted sooner than workers have started


class Sketch(Protocol):
    """Encoded conversations without pixels; see `TolerantDataset.sketch`."""

    @property
    def fingerprint(self) -> str | None: ...

    @property
    def tokens_per_image(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Encoded: ...


@dataclass(frozen=True, eq=False)
class Lengths:
    """Of all n conversations, as they are after whole turns were cut to fit."""

    tokens: np.ndarray  # [n] int64
    images: np.ndarray  # [n] int64


def measure(sketch: Sketch) -> Lengths:
    """The lengths of all conversations, from the cache, where they are put first.

    Processes of a machine that start together wait for the one that counts. Without a fingerprint nothing is
    kept. Raises `DataError` for a cache folder that cannot be written.
    """
    if sketch.fingerprint is None:
        return _count(sketch)
    entry = cache_folder() / "lengths" / f"{_FORMAT}-{sketch.fingerprint}"
    try:
        if not entry.exists():
            entry.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(entry.with_name(f"{entry.name}.lock")):
                if not entry.exists():  # another process may have been faster
                    _write(_count(sketch), entry)
        with np.load(entry / _FILE) as arrays:
            return Lengths(arrays["tokens"].astype(np.int64), arrays["images"].astype(np.int64))
    except OSError as error:
        raise DataError(
            f"cannot keep the lengths of conversations in the cache ({error}); set --data_cache_path to a folder"
            " with space"
        ) from error


def _write(lengths: Lengths, entry: Path) -> None:
    with atomic_directory(entry) as folder:
        np.savez(
            folder / _FILE, tokens=lengths.tokens.astype(np.int32), images=lengths.images.astype(np.int32)
        )


def _count(sketch: Sketch) -> Lengths:
    start = time.perf_counter()
    workers = _cores() if len(sketch) >= _WORTH_WORKERS else 0
    loader = DataLoader(_Sizes(sketch), _BATCH, num_workers=workers, collate_fn=np.array)
    bar = tqdm(
        loader, desc="counting tokens", unit_scale=_BATCH, leave=False, disable=not sys.stderr.isatty()
    )
    sizes = np.concatenate([np.empty((0, 2), dtype=np.int64), *bar])  # [n, 2]
    if workers:
        taken = time.perf_counter() - start
        logger.info("counted the tokens of %s conversations in %.0f s (once)", f"{len(sketch):,}", taken)
    return Lengths(sizes[:, 0], sizes[:, 1])


class _Sizes(Dataset):
    """Tokens and images of one conversation."""

    def __init__(self, sketch: Sketch) -> None:
        self.sketch = sketch

    def __len__(self) -> int:
        return len(self.sketch)

    def __getitem__(self, index: int) -> tuple[int, int]:
        kinds = self.sketch[index].mm_token_type_ids
        return len(kinds), int(kinds.sum()) // self.sketch.tokens_per_image


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
