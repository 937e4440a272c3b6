"""Rows in an Arrow file: written a batch at a time, read one at a time from the mapped file.

So neither needs more memory for more rows. `datasets` reads the files too (`Dataset.from_file`).
"""

import mmap
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 4096
_MAPPED_AT_MOST = 128 << 20  # bytes before pages are given back
_MAPPED_PER_READ = 2 << 20  # bytes: Linux maps as much of a cached file around the one that is read


class RowWriter:
    """Writes rows to a new Arrow file. `cost` of a row is its size in bytes, roughly."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._stream = pa.ipc.new_stream(str(path), schema)
        self._rows: list[Mapping[str, Any]] = []
        self._cost = 0

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._stream.close()

    def add(self, row: Mapping[str, Any], cost: int) -> None:
        """Write a row, in time."""
        self._rows.append(row)
        self._cost += cost
        if self._cost > _BATCH_BYTES or len(self._rows) >= _BATCH_ROWS:
            self._flush()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Write rows that are Arrow already."""
        self._stream.write_batch(batch)

    def _flush(self) -> None:
        self.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows, self._cost = [], 0


class ArrowRows(Sequence[dict[str, Any]]):
    """The rows of an Arrow file. Pickled, it is the file's path: a loader's worker maps the file itself.

    Mapped pages count as memory of the process while they stay mapped; so those that were read are given back
    now and then. They stay in the system's file cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with pa.ipc.open_stream(pa.py_buffer(self._map)) as stream:
            self._batches = [batch for batch in stream if batch.num_rows]
        self._first = [0, *accumulate(batch.num_rows for batch in self._batches)]
        self._mapped = 0
        self._give_back()

    def __reduce__(self) -> tuple[type["ArrowRows"], tuple[Path]]:
        return ArrowRows, (self.path,)

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, place = self._find(index)
        row = batch.slice(place, 1)
        self._count(row.nbytes)
        return row.to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches:
            self._count(batch.nbytes)
            yield from batch.to_pylist()

    def cell(self, index: int, column: str) -> Any:
        """One value of a row, without the others."""
        batch, place = self._find(index)
        value = batch.column(column)[place].as_py()
        self._count(len(value) if isinstance(value, str | bytes) else 0)
        return value

    def _find(self, index: int) -> tuple[pa.RecordBatch, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        batch = bisect_right(self._first, index) - 1
        return self._batches[batch], index - self._first[batch]

    def _count(self, count: int) -> None:
        self._mapped += count + _MAPPED_PER_READ
        if self._mapped > _MAPPED_AT_MOST:
            self._give_back()

    def _give_back(self) -> None:
        self._mapped = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
