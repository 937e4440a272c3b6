"""Parquet files, a few rows at a time."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from utils.data.file_kinds import FETCH
from utils.data.spec import DataError

_BATCH_ROWS = 64  # rows with pictures in them are large
_BUFFER = 1 << 20  # bytes of a column that are read at a time, rather than all of a row group's


def is_parquet(path: Path) -> bool:
    """Whether a file is parquet by its name."""
    return path.suffix.lower() == ".parquet"


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files in a folder, by name."""
    return sorted(path for path in folder.iterdir() if is_parquet(path))


class ParquetSource:
    """A parquet file. Raises `DataError` that names it where it cannot be read."""

    def __init__(self, path: Path, remedy: str = FETCH) -> None:
        """`remedy` is what messages advise for a damaged file."""
        self.path = path
        self.remedy = remedy
        try:
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise self.error(error) from error
        self.schema = self._file.schema_arrow

    @property
    def size(self) -> int:
        """Bytes of all columns, unpacked."""
        return sum(self.row_group_bytes())

    def row_group_bytes(self) -> list[int]:
        """Bytes of each row group, unpacked."""
        metadata = self._file.metadata
        return [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]

    def row_group_rows(self) -> list[int]:
        """Rows of each row group."""
        metadata = self._file.metadata
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order."""
        try:
            yield from self._file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise self.error(error) from error

    def row_group(self, number: int, column: str) -> pa.ChunkedArray:
        """A column of one row group."""
        try:
            return self._file.read_row_group(number, columns=[column], use_threads=False).column(0)
        except (OSError, pa.ArrowException) as error:
            raise self.error(error) from error

    def error(self, reason: object) -> DataError:
        """An error about this file."""
        return DataError(
            f"{self.path} is not a valid parquet file ({' '.join(str(reason).split())}); {self.remedy}"
        )
