"""Files that hold many pictures by their ids.

These are MIMIC-IT's JSON objects of base64, tens of GB each, and the parquet files of its later releases.
Whatever their size, a process needs little memory for them: a JSON file is converted once per machine, as it
streams by, into an SQLite table of encoded pictures. A parquet file is read where it is, if its row groups are small
enough to be unpacked for one picture; the table then has the ids and their rows alone.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from utils.commands import in_units, progress
from utils.conversation import ImageError
from utils.data.readers.conversion_cache import Source, cached
from utils.data.readers.json_stream import JsonStream
from utils.data.readers.parquet import PictureTable, TablePictures, table_entries
from utils.data.spec import DataError
from utils.distributed import get_logger
from utils.images import image_bytes

logger = get_logger(__name__)

_DATABASE = "pictures.sqlite"
_DIRECT_AT_MOST = 16 << 20  # bytes of a row group that is unpacked for one picture
_SETTINGS = ("page_size = 16384", "cache_size = -65536", "journal_mode = off", "synchronous = off")


class ImageArchive(Mapping[str, bytes]):
    """Encoded pictures by their ids. Looking an id up and fetching a picture read no more than that.

    It can be sent to other processes, which open the files themselves. An id that is there twice stands for
    its last picture, as in any JSON object. `store[id]` raises `KeyError` for an id that is not there, and
    `ImageError` for one whose entry is no picture.
    """

    def __init__(self, path: Path, folder: Path, shards: Sequence[Path] = ()) -> None:
        """Use `open_image_archive`. `folder` is the cache's entry for the file `path`; the images are in it, or stay in
        the parquet files `shards`.
        """
        self.path = path
        self._opening = (path, folder, shards)
        self._database = folder / _DATABASE
        self._tables = TablePictures([PictureTable(shard) for shard in shards]) if shards else None

    def __reduce__(self) -> tuple[type["ImageArchive"], tuple[Any, ...]]:
        return ImageArchive, self._opening

    def __len__(self) -> int:
        return self._select("SELECT count(*) FROM pictures").fetchone()[0]

    def __contains__(self, name: object) -> bool:
        return self._select("SELECT 1 FROM pictures WHERE id = ?", name).fetchone() is not None

    def __iter__(self) -> Iterator[str]:
        return (name for (name,) in self._select("SELECT id FROM pictures ORDER BY number"))

    def __getitem__(self, name: str) -> bytes:
        row = self._select("SELECT number, picture, problem FROM pictures WHERE id = ?", name).fetchone()
        if row is None:
            raise KeyError(name)
        number, picture, problem = row
        try:
            picture = picture if self._tables is None else self._tables.picture(number)
        except ValueError as error:
            problem = error
        if problem is not None:
            raise ImageError(f"{self.path}#{name}: {problem}")
        return picture

    def _select(self, query: str, *values: object) -> sqlite3.Cursor:
        try:
            return _connection(self._database, os.getpid()).execute(query, values)
        except sqlite3.Error as error:
            raise DataError(
                f"cannot read {self._database} ({error}); remove that file and start again"
            ) from error


@lru_cache
def _connection(database: Path, process: int) -> sqlite3.Connection:
    """A connection that reads, of this process: those of before a fork are not to be used."""
    uri = f"{database.absolute().as_uri()}?immutable=1"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


def open_image_archive(path: Path) -> ImageArchive:
    """The pictures of a JSON object `{id: base64}`, of a parquet file with ids and pictures, or of a folder of
    such parquet files.

    A JSON file is converted once per machine, and so is parquet with large row groups; processes that start
    together wait for the one that does it. Raises `DataError` for a file that cannot be read to its end or
    holds no such pictures, and for a cache folder that cannot be written or is too small.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file; check its name, or fetch it")
    shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not shards:
        raise DataError(f"{path} holds no .parquet file; fetch them again, or name one file")
    source = Source(path, tuple(shards))
    if shards[0].suffix != ".parquet":
        write = partial(_convert, _json_entries(path), path)
        return ImageArchive(path, cached(source, "pictures", write, share=0.8))
    tables = [PictureTable(shard) for shard in shards]
    groups = [group for table in tables for group in table.parquet.row_groups]
    if max((group.total_byte_size for group in groups), default=0) <= _DIRECT_AT_MOST:
        source, write = replace(source, variant="ids"), partial(_index_ids, tables, path)
        return ImageArchive(path, cached(source, "pictures", write, share=0.1), source.files)
    write = partial(_convert, table_entries(tables), path)
    return ImageArchive(path, cached(source, "pictures", write))


def _json_entries(path: Path) -> Iterable[tuple[str, Any]]:
    with progress(path.name, path.stat().st_size, "B") as advance, JsonStream(path, advance) as stream:
        if stream.peek() != "{":
            raise stream.error("expected one object of pictures, {id: base64}")
        for name in stream.members():
            # Half of a surrogate pair is no text that could be kept; such an id cannot be looked up.
            yield name.encode(errors="replace").decode(), stream.value().value
        stream.end()


def _convert(entries: Iterable[tuple[str, Any]], path: Path, folder: Path) -> None:
    problems: list[str] = []
    pictures = size = 0

    def rows() -> Iterator[tuple[str, bytes | None, str | None]]:
        nonlocal pictures, size
        for name, value in entries:
            try:
                picture = image_bytes(value)
            except ValueError as error:
                problems.append(f"{name}: {error}")
                yield name, None, str(error)
            else:
                pictures, size = pictures + 1, size + len(picture)
                yield name, picture, None

    _write(rows(), path, folder)
    if problems and not pictures:
        raise DataError(f"{path} holds no picture as base64 ({problems[0]}); name a file of {{id: base64}}")
    _warn(path, problems, "cannot be decoded")
    logger.info("%s: %s pictures, %s encoded", path, f"{pictures:,}", in_units(size))


def _index_ids(tables: Iterable[PictureTable], path: Path, folder: Path) -> None:
    _write(((name, None, None) for table in tables for name in table.ids()), path, folder)


def _write(rows: Iterable[tuple[str, bytes | None, str | None]], path: Path, folder: Path) -> None:
    """Number the rows and keep them; of those with the same id the last."""
    repeated: dict[str, None] = {}
    try:
        with closing(sqlite3.connect(folder / _DATABASE)) as connection, connection:
            for setting in _SETTINGS:
                connection.execute(f"PRAGMA {setting}")
            connection.execute(
                "CREATE TABLE pictures (number INTEGER PRIMARY KEY, id TEXT UNIQUE, picture BLOB, problem TEXT)"
            )
            for number, row in enumerate(rows):
                if connection.execute("DELETE FROM pictures WHERE id = ?", row[:1]).rowcount:
                    repeated[row[0]] = None
                connection.execute("INSERT INTO pictures VALUES (?, ?, ?, ?)", (number, *row))
    except sqlite3.Error as error:
        raise OSError(str(error)) from error
    _warn(path, list(repeated), "come more than once; the last is used")


def _warn(path: Path, found: list[str], what: str) -> None:
    if found:
        logger.warning("%s: %s ids %s: %s", path, f"{len(found):,}", what, "; ".join(found[:3]))
