"""Annotation files as memory-mapped Arrow: read once per machine, then shared by all processes and workers.

A file is converted the first time it is used, into a cache folder outside the data folder, as it streams by:
so neither the first nor a later use needs memory for more than a few records at a time. Records of JSON
differ in their fields, so each is kept as the text it was, and parsed when it is asked for.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from utils.commands import byte_bar
from utils.data.readers.arrow_file import ArrowRows, RowWriter
from utils.data.readers.conversion_cache import Source, cached, in_units
from utils.data.readers.file_signatures import is_packed, is_parquet, parquet_files
from utils.data.readers.record_texts import RecordText, read_json, read_json_lines, read_own
from utils.data.spec import DataError
from utils.distributed import get_logger

logger = get_logger(__name__)

RECORDS = "records.arrow"
_UNPACKED = 8  # times the bytes of a .gz, roughly
_PUBLISHED = "it is not the published file, fetch it again; or its records are under a key of their own"
_OWN = (
    'expected a list of records, or one a line, each as {"conversations": [...]} or {"messages": [...]}'
    " (docs/own-data.md)"
)
_SCHEMA = pa.schema({"record": pa.large_string(), "problem": pa.large_string()})

PARQUET, ARCHIVE = "parquet", "image archive"
_OF_ARCHIVES = ("parquet", "image_archive")  # the modules beside this one that register readers
_READERS: dict[str, Callable[..., Any]] = {}


def register_reader(kind: str, open_file: Callable[..., Any]) -> None:
    """Let files of a kind be read: `PARQUET` opens (path, whether it is the user's own) as `Records`, `ARCHIVE` opens
    (path) as a mapping of encoded images by their ids.
    """
    _READERS[kind] = open_file


def reader(kind: str, path: Path) -> Callable[..., Any]:
    """What opens files of a kind; `DataError` that names the path where nothing does."""
    for name in _OF_ARCHIVES:
        if find_spec(f"{__package__}.{name}"):
            import_module(f"{__package__}.{name}")
    if kind not in _READERS:
        raise DataError(
            f"{path}: no reader for files of the kind {kind} is installed with this code; clone the repository"
            " again, or give JSON"
        )
    return _READERS[kind]


@dataclass(frozen=True)
class Unusable:
    """What stands in the place of a record that cannot be read, and why; no adapter takes it."""

    reason: str


def _as_it_is(row: Any) -> Any:
    return row


class Records(Sequence[dict[str, Any]]):
    """The records of one annotation file, each read when it is asked for.

    What is in the place of a record comes as it is, also where it is no object: a number, a text, or
    `Unusable`. So the place of every record stays the same, and one bad record costs the others nothing.
    """

    def __init__(self, rows: Sequence[Any], read: Callable[[Any], Any] = _as_it_is) -> None:
        """`read` makes a record of a row."""
        self._rows, self._read = rows, read

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._read(self._rows[int(index) % len(self)])

    def __iter__(self) -> Iterator[Any]:
        return map(self._read, self._rows)


def _parsed(row: dict[str, Any]) -> Any:
    """A record that is kept as JSON text."""
    if row["problem"] is not None:
        return Unusable(row["problem"])
    try:
        return json.loads(row["record"])
    except RecursionError:
        return Unusable("its lists and objects are nested too deeply")


def _of_table(row: pa.Table) -> dict[str, Any]:
    """A record of a dataset that `datasets` has saved; its pictures are left encoded."""
    return row.to_pylist()[0]


def open_records(path: Path, key: str | None = None, is_own: bool = False) -> Records:
    """The records of an annotation file, from the cache, where they are put first if the file is new or changed.

    Args:
        path: a JSON list of objects; a JSON object of objects, whose records get their key as "id"; a file
            named .jsonl with one object a line; a parquet file, or a folder of several; a folder saved by
            `datasets`.
        key: the records are a list or an object under this key of one JSON object.
        is_own: it is no published file: JSON may be in any shape of `read_own`, also packed as .gz.

    Processes that start together wait for the one that converts. Raises `DataError` for a file that cannot be
    read to its end or holds no such records, and for a cache folder that cannot be written.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file; check its name, or fetch it")
    shards = parquet_files(path) if path.is_dir() else [path]
    if not shards:
        return Records(_open_saved(path), _of_table)
    if is_parquet(shards[0]):
        return reader(PARQUET, path)(path, is_own)
    if is_own:
        read, variant, expected = read_own, "own", _OWN
    elif path.suffix == ".jsonl":
        read, variant, expected = read_json_lines, "lines", _PUBLISHED
    else:
        read, variant, expected = partial(read_json, key=key), f"json {key}", _PUBLISHED
    share = _UNPACKED if is_packed(path) else 1.1
    write = partial(_write_texts, path, read, expected)
    entry = cached(Source(path, (path,), variant), "records", write, share)
    return Records(ArrowRows(entry / RECORDS), _parsed)


def _write_texts(
    path: Path,
    read: Callable[[Path, Callable[[int], object]], Iterator[RecordText]],
    expected: str,
    folder: Path,
) -> None:
    count = objects = 0
    size = path.stat().st_size * (_UNPACKED if is_packed(path) else 1)
    with byte_bar(path.name, size) as advance, RowWriter(folder / RECORDS, _SCHEMA) as writer:
        for record in read(path, advance):
            writer.add({"record": record.text, "problem": record.problem}, len(record.text or ""))
            count += 1
            objects += record.is_object
        if count and not objects:
            raise DataError(
                f"{path} holds {count:,} values, none of them a record (a JSON object): {expected}"
            )
    logger.info("%s: %s records, %s", path, f"{count:,}", in_units(path.stat().st_size))


def _open_saved(path: Path) -> datasets.Dataset:
    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path} is not a folder that `datasets` saved whole, by save_to_disk"
            f" ({' '.join(str(error).split())}); save it again, or name a .json, .jsonl or .parquet file"
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if len(saved) != 1:
            raise DataError(
                f"{path} holds the splits {', '.join(saved)}; name one: {path / next(iter(saved))}"
            )
        saved = next(iter(saved.values()))
    return saved.with_format("arrow")  # pictures stay encoded, rows come without a copy
