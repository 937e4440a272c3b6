"""How long conversations are, in tokens and images: counted once, by all cores, and kept in the cache.

Packing and length grouping need to know all lengths of an epoch before it begins. Counting is rendering and
tokenising without reading an image: some thousand conversations a second on a core.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from utils.atomic import atomic_directory
from utils.data.all_cores import each_item
from utils.data.cache import cache_folder, locked
from utils.data.encode import Encoded
from utils.data.spec import DataError

_FORMAT = 1  # raise it when other lengths would be counted, and old entries are passed over
_FILE = "lengths.npz"


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
            with locked(entry.with_name(f"{entry.name}.lock"), "counts the tokens of conversations"):
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
    sizes = np.array(list(each_item(_Sizes(sketch), "counting tokens (once)")), dtype=np.int64).reshape(-1, 2)
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
