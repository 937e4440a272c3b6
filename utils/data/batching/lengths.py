"""How long conversations are, in tokens and images: counted once, by all cores, and kept in the cache.

Packing and length grouping need to know all lengths of an epoch before it begins. Counting is rendering and
tokenising without reading an image: some thousand conversations a second on a core.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from utils.atomic import atomic_directory
from utils.data.batching.encode import EncodedDataset
from utils.data.readers.conversion_cache import cache_folder, locked
from utils.data.spec import DataError
from utils.data.workers import parallel_map

_FORMAT = 1  # raise it when other lengths would be counted, and old entries are passed over
_FILE = "lengths.npz"


@dataclass(frozen=True, eq=False)
class Lengths:
    """Of all n conversations, as they are after whole turns were cut to fit."""

    tokens: np.ndarray  # [n] int64
    images: np.ndarray  # [n] int64


def measure(dataset: EncodedDataset) -> Lengths:
    """The lengths of all conversations, from the cache, where they are put first.

    Processes of a machine that start together wait for the one that counts. Without a fingerprint nothing is
    kept. Raises `DataError` for a cache folder that cannot be written.
    """
    if dataset.fingerprint is None:
        return _count(dataset)
    entry = cache_folder() / "lengths" / f"{_FORMAT}-{dataset.fingerprint}"
    try:
        if not entry.exists():
            entry.parent.mkdir(parents=True, exist_ok=True)
            with locked(entry.with_name(f"{entry.name}.lock"), "counts the tokens of conversations"):
                if not entry.exists():  # another process may have been faster
                    _write(_count(dataset), entry)
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


def _count(dataset: EncodedDataset) -> Lengths:
    sizes = np.array(list(parallel_map(_Sizes(dataset), "counting tokens (once)")), dtype=np.int64).reshape(
        -1, 2
    )
    return Lengths(sizes[:, 0], sizes[:, 1])


class _Sizes(Dataset):
    """Tokens and images of one conversation."""

    def __init__(self, dataset: EncodedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, int]:
        kinds = self.dataset[index].mm_token_type_ids
        return len(kinds), int(kinds.sum()) // self.dataset.tokens_per_image
