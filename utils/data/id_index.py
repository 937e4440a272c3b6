"""Finding rows by their ids in a sorted array on the disk: no dictionary of millions in every process."""

import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_ROW = np.uint64(0xFFFFFFFF)
_BITS = np.uint64(32)


@dataclass(frozen=True)
class IdIndex:
    """n ids as sorted numbers: the upper half of each is a checksum of the id, the lower half its row.

    Ids that share a checksum are told apart by `id_of`, which says the id of a row.
    """

    path: Path
    entries: np.ndarray  # [n] uint64, mapped
    id_of: Callable[[int], str]

    @classmethod
    def open(cls, path: Path, id_of: Callable[[int], str]) -> "IdIndex":
        """One that `IdIndexWriter` wrote."""
        return cls(path, np.load(path, mmap_mode="r"), id_of)

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, name: str) -> int | None:
        """The row of an id, or None."""
        checksum = _checksum(name)
        at = int(np.searchsorted(self.entries, np.uint64(checksum << 32)))
        while at < len(self.entries) and int(self.entries[at]) >> 32 == checksum:
            row = int(self.entries[at] & _ROW)
            if self.id_of(row) == name:
                return row
            at += 1
        return None

    def rows(self) -> np.ndarray:
        """[n] uint64: the rows in their order in the file."""
        return np.sort(self.entries & _ROW)


class IdIndexWriter:
    """Collects ids in the order of their rows: 8 bytes of memory each."""

    def __init__(self) -> None:
        self._entries = array("Q")
        self._rows = 0

    def add(self, name: str) -> None:
        """The id of the next row."""
        self._entries.append(_checksum(name) << 32 | self._rows)
        self._rows += 1

    def write(self, path: Path, id_of: Callable[[int], str]) -> list[str]:
        """Write the index; of rows with the same id it keeps the last. Returns the ids that came repeatedly."""
        entries = np.frombuffer(self._entries, dtype=np.uint64) if self._entries else np.empty(0, np.uint64)
        entries.sort()  # in place
        checksums = entries >> _BITS
        shared = np.flatnonzero(checksums[1:] == checksums[:-1]) + 1
        superseded, repeated = [], []
        for at in shared.tolist():
            # Entries of one checksum are in the order of their rows: a later one of the same id wins.
            name = id_of(int(entries[at] & _ROW))
            before = at - 1
            while before >= 0 and checksums[before] == checksums[at]:
                if id_of(int(entries[before] & _ROW)) == name:
                    superseded.append(before)
                    repeated.append(name)
                    break
                before -= 1
        np.save(path, np.delete(entries, superseded))
        return list(dict.fromkeys(repeated))


def _checksum(name: str) -> int:
    return zlib.crc32(name.encode(errors="surrogatepass"))
