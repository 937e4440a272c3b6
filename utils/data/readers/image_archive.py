"""Files that hold many pictures by their ids.

These are MIMIC-IT's JSON objects of base64, tens of GB each, and the parquet files of its later releases.
Whatever their size, a process needs little memory for them: a JSON file is converted once per machine, as it
streams by, into an Arrow file of encoded pictures with an index of their ids beside it; both are mapped. A
parquet file is read where it is, if its row groups are small enough to be unpacked for one picture. Rows are found by
their ids in a sorted array on the disk: no dictionary of millions in every process.
"""

import json
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from utils.commands import byte_bar
from utils.conversation import ImageError
from utils.data.readers.annotations import ARCHIVE, register_reader
from utils.data.readers.conversion_cache import ArrowRows, RowWriter, Source, cached, in_units
from utils.data.readers.json_stream import JsonStream
from utils.data.readers.parquet import PictureTable, TablePictures, table_entries
from utils.data.spec import DataError
from utils.distributed import get_logger
from utils.images import image_bytes

logger = get_logger(__name__)

_ROWS, _INDEX, _NOTES = "pictures.arrow", "ids.npy", "notes.json"
_SCHEMA = pa.schema({"id": pa.string(), "picture": pa.large_binary(), "problem": pa.string()})
_IDS_SCHEMA = pa.schema({"id": pa.string()})
_DIRECT_AT_MOST = 16 << 20  # bytes of a row group that is unpacked for one picture
_NOTED_AT_MOST = 1000
_ROW, _BITS = np.uint64(0xFFFFFFFF), np.uint64(32)  # of an entry of the index of ids


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


class ImageArchive(Mapping[str, bytes]):
    """Encoded pictures by their ids. Looking an id up and fetching a picture read no more than that.

    It can be sent to other processes, which open the files themselves. An id that is there twice stands for
    its last picture, as in any JSON object. `store[id]` raises `KeyError` for an id that is not there, and
    `ImageError` for one whose entry is no picture; `notes` names such ids.
    """

    def __init__(self, path: Path, folder: Path, shards: Sequence[Path] = ()) -> None:
        """Use `open_image_archive`. `folder` is the cache's entry for the file `path`; the images are in it, or stay in
        the parquet files `shards`.
        """
        self.path = path
        self._opening = (path, folder, shards)
        self._rows = ArrowRows(folder / _ROWS)
        self._index = IdIndex.open(folder / _INDEX, partial(self._rows.cell, column="id"))
        self._tables = TablePictures([PictureTable(shard) for shard in shards]) if shards else None
        self.notes: tuple[str, ...] = tuple(json.loads((folder / _NOTES).read_text()))

    def __reduce__(self) -> tuple[type["ImageArchive"], tuple[Any, ...]]:
        return ImageArchive, self._opening

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._index.find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return (self._rows.cell(row, "id") for row in self._index.rows().tolist())

    def __getitem__(self, name: str) -> bytes:
        row = self._index.find(name)
        if row is None:
            raise KeyError(name)
        try:
            return self._picture(row)
        except ValueError as error:
            raise ImageError(f"{self.path}#{name}: {error}") from error

    def _picture(self, row: int) -> bytes:
        """The encoded image of a row; raises `ValueError` where there is none."""
        if self._tables is not None:
            return self._tables.picture(row)
        if (problem := self._rows.cell(row, "problem")) is not None:
            raise ValueError(problem)
        return self._rows.cell(row, "picture")


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
    with byte_bar(path.name, path.stat().st_size) as advance, JsonStream(path, advance) as stream:
        if stream.peek() != "{":
            raise stream.error("expected one object of pictures, {id: base64}")
        for name in stream.members():
            # Half of a surrogate pair is no text that could be kept; such an id cannot be looked up.
            yield name.encode(errors="replace").decode(), stream.value().value
        stream.end()


def _convert(entries: Iterable[tuple[str, Any]], path: Path, folder: Path) -> None:
    ids, problems = IdIndexWriter(), []
    pictures = size = 0
    with RowWriter(folder / _ROWS, _SCHEMA) as writer:
        for name, value in entries:
            picture, problem = None, None
            try:
                picture = image_bytes(value)
                pictures, size = pictures + 1, size + len(picture)
            except ValueError as error:
                problem = str(error)
                problems.append(f"{name}: {problem}")
            ids.add(name)
            writer.add({"id": name, "picture": picture, "problem": problem}, len(picture or b""))
    if problems and not pictures:
        raise DataError(f"{path} holds no picture as base64 ({problems[0]}); name a file of {{id: base64}}")
    _finish(folder, path, ids, problems)
    logger.info("%s: %s pictures, %s encoded", path, f"{pictures:,}", in_units(size))


def _index_ids(tables: Iterable[PictureTable], path: Path, folder: Path) -> None:
    ids = IdIndexWriter()
    with RowWriter(folder / _ROWS, _IDS_SCHEMA) as writer:
        for table in tables:
            for name in table.ids():
                ids.add(name)
                writer.add({"id": name}, len(name))
    _finish(folder, path, ids, [])


def _finish(folder: Path, path: Path, ids: IdIndexWriter, problems: list[str]) -> None:
    rows = ArrowRows(folder / _ROWS)
    repeated = ids.write(folder / _INDEX, partial(rows.cell, column="id"))
    notes = [*problems, *(f"{name}: it comes more than once; the last is used" for name in repeated)]
    for kind, found in (("cannot be decoded", problems), ("come more than once; the last is used", repeated)):
        if found:
            logger.warning("%s: %s ids %s: %s", path, f"{len(found):,}", kind, "; ".join(found[:3]))
    (folder / _NOTES).write_text(json.dumps(notes[:_NOTED_AT_MOST]))


register_reader(ARCHIVE, open_image_archive)
