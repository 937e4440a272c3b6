"""Parquet files, a few rows at a time: of records, and of images by their ids, as MIMIC-IT's later releases are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.commands import progress
from utils.data.readers.annotations import RECORDS
from utils.data.readers.conversion_cache import ArrowRows, Source, cached, write_batches
from utils.data.readers.json_stream import FETCH, REWRITE, parquet_files
from utils.data.spec import DataError
from utils.images import image_bytes

_BATCH_ROWS = 64  # rows with pictures in them are large
_BUFFER = 1 << 20  # bytes of a column that are read at a time, rather than all of a row group's
_UNPACKED_GROUPS = 4  # row groups that a process keeps
# A data frame's index, which some releases use for the ids, has a name of the library's choice.
_ID_COLUMNS = ("id", "image_id", "__index_level_0__", "__null_dask_index__", "index")
_PICTURE_COLUMNS = ("base64", "image")


class ParquetSource:
    """A parquet file. Raises `DataError` that names it where it cannot be read."""

    def __init__(self, path: Path, remedy: str = FETCH) -> None:
        """`remedy` is what messages advise for a damaged file."""
        self.path = path
        self.remedy = remedy
        with self._naming():
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
        self.schema = self._file.schema_arrow

    @property
    def row_groups(self) -> list[pq.RowGroupMetaData]:
        """What is known of each: `num_rows`, and `total_byte_size`, unpacked."""
        metadata = self._file.metadata
        return [metadata.row_group(number) for number in range(metadata.num_row_groups)]

    @property
    def size(self) -> int:
        """Bytes of all columns, unpacked."""
        return sum(group.total_byte_size for group in self.row_groups)

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order."""
        with self._naming():
            yield from self._file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)

    def row_group(self, number: int, column: str) -> pa.ChunkedArray:
        """A column of one row group."""
        with self._naming():
            return self._file.read_row_group(number, columns=[column], use_threads=False).column(0)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{self.path} is not a valid parquet file ({reason}); {self.remedy}") from error


class PictureTable:
    """A parquet file with a column of ids and one of pictures; raises `DataError` where it has none."""

    def __init__(self, path: Path) -> None:
        self.parquet = ParquetSource(path)
        names = self.parquet.schema.names
        self.id_column = next((name for name in _ID_COLUMNS if name in names), "")
        self.picture_column = next((name for name in _PICTURE_COLUMNS if name in names), "")
        if not (self.id_column and self.picture_column):
            raise DataError(
                f"{path} has the columns {', '.join(names)}; a column of ids ({', '.join(_ID_COLUMNS[:2])}) and"
                f" one of pictures ({', '.join(_PICTURE_COLUMNS)}) are needed: rename them, or fetch it again"
            )

    def ids(self) -> Iterator[str]:
        """The ids of all rows, in order."""
        for batch in self.parquet.batches([self.id_column]):
            yield from map(str, batch.column(0).to_pylist())


def table_entries(tables: Sequence[PictureTable]) -> Iterator[tuple[str, Any]]:
    """Ids and pictures of all rows, a few in memory at a time; shows how far it has got."""
    total = sum(table.parquet.size for table in tables)
    with progress(tables[0].parquet.path.name, total, "B") as advance:
        for table in tables:
            for batch in table.parquet.batches([table.id_column, table.picture_column]):
                names, values = batch.column(table.id_column), batch.column(table.picture_column)
                for name, value in zip(names, values, strict=True):
                    yield str(name.as_py()), value.as_py()
                advance(batch.nbytes)


class TablePictures:
    """Pictures by their rows, counted through files with small row groups.

    One group is unpacked for a picture, and kept for the next.
    """

    def __init__(self, tables: Sequence[PictureTable]) -> None:
        groups = [(table, *each) for table in tables for each in enumerate(table.parquet.row_groups)]
        self._groups = [(table, number) for table, number, _ in groups]
        self._first = np.cumsum([0, *(group.num_rows for _, _, group in groups)])
        self._unpacked = lru_cache(_UNPACKED_GROUPS)(self._unpack)

    def picture(self, row: int) -> bytes:
        """The encoded picture; raises `ValueError` where there is none."""
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        return image_bytes(self._unpacked(number)[int(row - self._first[number])].as_py())

    def _unpack(self, number: int) -> pa.ChunkedArray:
        table, group = self._groups[number]
        return table.parquet.row_group(group, table.picture_column)


def open_parquet(path: Path, is_own: bool) -> ArrowRows:
    """The records of a parquet file, or of all those in a folder."""
    remedy = REWRITE if is_own else FETCH
    shards = [ParquetSource(shard, remedy) for shard in (parquet_files(path) if path.is_dir() else [path])]
    schema, size = shards[0].schema, sum(shard.size for shard in shards)
    for shard in shards:
        if not shard.schema.equals(schema):
            raise DataError(
                f"{shard.path} has the columns {', '.join(shard.schema.names)}, others than {shards[0].path}"
                f" ({', '.join(schema.names)}), or of other types: name one of the files alone"
            )

    def batches() -> Iterator[pa.RecordBatch]:
        with progress(path.name, size, "B") as advance:
            for batch in (batch for shard in shards for batch in shard.batches()):
                yield batch
                advance(batch.nbytes)

    def write(folder: Path) -> None:
        write_batches(folder / RECORDS, schema, batches())

    source = Source(path, tuple(shard.path for shard in shards))
    return ArrowRows(cached(source, "records", write, share=size / source.size) / RECORDS)
