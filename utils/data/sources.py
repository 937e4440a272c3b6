"""Annotation files as memory-mapped Arrow: read once per machine, then shared by all processes and workers.

A JSON list is converted the first time it is used, into a cache folder outside the data folder (the
environment variable VISUALCHAT_CACHE, or ~/.cache/visualchat). Records differ in their fields, so each is
kept as the text it was; a process holds in memory only those that it looks at.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock

from utils.atomic import atomic_directory
from utils.data.spec import DataError
from utils.distributed import get_logger

logger = get_logger(__name__)

_FORMAT = 1  # raise it when what is written changes, and old entries are passed over
_RECORD = "record"
_FILE = "records.arrow"
_READ_BATCH = 1000


def cache_folder() -> Path:
    """Where converted annotation files are kept."""
    return Path(os.environ.get("VISUALCHAT_CACHE") or "~/.cache/visualchat").expanduser()


class Records(Sequence[dict[str, Any]]):
    """The records of one annotation file, parsed one at a time."""

    def __init__(self, table: datasets.Dataset) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json.loads(self._table[index][_RECORD])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._table.iter(_READ_BATCH):
            yield from map(json.loads, batch[_RECORD])


def open_records(path: Path) -> Records:
    """The records of a JSON list, from the cache, where they are put first if the file is new or has changed.

    Processes that start together wait for the one that converts. Raises `DataError` for a file that is not a
    JSON list of objects, and for a cache folder that cannot be written.
    """
    entry = cache_folder() / "records" / _entry_name(path)
    if not entry.exists():
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(entry.with_name(f"{entry.name}.lock")):
                if not entry.exists():  # another process may have been faster
                    _convert(path, entry)
        except OSError as error:
            raise DataError(
                f"cannot keep {path} in the cache ({error}); set VISUALCHAT_CACHE to a folder with space"
            ) from error
    return Records(datasets.Dataset.from_file(str(entry / _FILE)))


def _entry_name(path: Path) -> str:
    status = path.stat()
    identity = f"{_FORMAT}\0{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    return f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _convert(path: Path, entry: Path) -> None:
    logger.info("Reading %s into %s (once)", path, entry)
    records = _read_list(path)
    features = datasets.Features({_RECORD: datasets.Value("large_string")})
    with (
        atomic_directory(entry) as folder,
        ArrowWriter(path=str(folder / _FILE), features=features) as writer,
    ):
        for record in records:
            writer.write({_RECORD: json.dumps(record)})
        writer.finalize()


def _read_list(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path} ({error})") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); it may be cut off: fetch it again") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{path} holds no JSON list of objects; it is not the published file: fetch it again")
    return records
