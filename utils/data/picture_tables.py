"""Parquet files of pictures, as MIMIC-IT's later releases have them."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from utils.data.parquet import ParquetSource
from utils.data.progress import byte_bar
from utils.data.spec import DataError
from utils.image_bytes import image_bytes

_UNPACKED_GROUPS = 4  # row groups that a process keeps
# A data frame's index, which some releases use for the ids, has a name of the library's choice.
_ID_COLUMNS = ("id", "image_id", "__index_level_0__", "__null_dask_index__", "index")
_PICTURE_COLUMNS = ("base64", "image")


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

    @property
    def largest_row_group(self) -> int:
        """Bytes, unpacked."""
        return max(self.parquet.row_group_bytes(), default=0)

    def ids(self) -> Iterator[str]:
        """The ids of all rows, in order."""
        for batch in self.parquet.batches([self.id_column]):
            yield from map(str, batch.column(0).to_pylist())


def table_entries(tables: Sequence[PictureTable]) -> Iterator[tuple[str, Any]]:
    """Ids and pictures of all rows, a few in memory at a time; shows how far it has got."""
    total = sum(table.parquet.size for table in tables)
    with byte_bar(tables[0].parquet.path.name, total) as advance:
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
        rows = [
            (table, group, count)
            for table in tables
            for group, count in enumerate(table.parquet.row_group_rows())
        ]
        self._groups = [(table, group) for table, group, _ in rows]
        self._first = np.cumsum([0, *(count for _, _, count in rows)])
        self._unpacked = lru_cache(_UNPACKED_GROUPS)(self._unpack)

    def picture(self, row: int) -> bytes:
        """The encoded picture; raises `ValueError` where there is none."""
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        return image_bytes(self._unpacked(number)[int(row - self._first[number])].as_py())

    def _unpack(self, number: int) -> pa.ChunkedArray:
        table, group = self._groups[number]
        return table.parquet.row_group(group, table.picture_column)
