"""Converted data files: each is made once per machine, and is complete or not there.

An entry is a folder, named after the file it was made of and that file's size and time of change. Processes
that start together wait for the one that makes it; one that is killed while it writes leaves nothing that
another would take for an entry. Rows stand in an Arrow file: written a batch at a time, read one at a time from the
mapped file, so neither needs more memory for more rows. `datasets` reads the files too (`Dataset.from_file`).
"""

import hashlib
import json
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

from utils.atomic import atomic_directory
from utils.commands import LINE_EVERY, in_units
from utils.data.spec import DataError
from utils.distributed import get_logger

logger = get_logger(__name__)

CACHE_VARIABLE = "VISUALCHAT_CACHE"
"""The environment variable that names the cache folder; `--data_cache_path` sets it for a run."""

_FORMAT = 3  # raise it when what is written changes, and old entries are passed over
_MANIFEST = "manifest.json"  # the sizes of an entry's files, so that one that lost a part is made anew
_REMEDY = f"set --data_cache_path (or {CACHE_VARIABLE}) to a folder with space"


def cache_folder() -> Path:
    """Where converted files are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/visualchat").expanduser()


def use_cache_folder(path: str | Path) -> None:
    """Keep converted files there from now on, in this process and in those that it starts."""
    os.environ[CACHE_VARIABLE] = str(Path(path).expanduser().resolve())


@dataclass(frozen=True)
class Source:
    """What an entry is made of: a path as messages name it, its files (several for a folder), and which part
    or view of them.
    """

    path: Path
    files: tuple[Path, ...]
    variant: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def place(self) -> str:
        """A name for it that does not change with its content."""
        return f"{self.path.stem}-{_digest(_FORMAT, self.path.resolve(), self.variant)}"

    def state(self) -> str:
        """A name for its content, by names, sizes and times of change of its files."""
        status = [(file.name, file.stat()) for file in self.files]
        return _digest(*((name, each.st_size, each.st_mtime_ns) for name, each in status))


def cached(source: Source, kind: str, write: Callable[[Path], None], share: float = 1.0) -> Path:
    """The entry's folder for `source`, which `write` fills if it is not there yet.

    Args:
        kind: the cache's subfolder.
        write: gets an empty folder; called in one process of this machine at a time.
        share: how many bytes an entry takes for each of the source, roughly: asked for before writing. Of one that
            takes none, nothing is said.

    Raises `DataError` where the source changes meanwhile and where the cache cannot be written, and whatever
    `write` raises; an entry is then not made.
    """
    entry = cache_folder() / kind / source.place() / source.state()

    def convert(folder: Path) -> None:
        _require_space(source, entry.parent, share)
        if share:
            logger.info("Reading %s (%s) into %s, once", source.path, in_units(source.size), cache_folder())
        write(folder)
        if source.state() != entry.name:
            raise DataError(
                f"{source.path} changed while it was read; run again when its download is complete"
            )

    keep(entry, str(source.path), f"reads {source.path}", convert)
    return entry


def keep(entry: Path, name: str, work: str, write: Callable[[Path], None]) -> None:
    """Fill the folder `entry` of the cache by `write` if it is not there yet; what stands beside it is older, and goes.

    Messages say that `name` is to be kept, and `work` ("reads a.json") to those who wait. Raises `DataError` where the
    cache cannot be written.
    """
    try:
        if _is_whole(entry):
            return
        entry.parent.mkdir(parents=True, exist_ok=True)
        with locked(entry.parent / ".lock", work):
            if _is_whole(entry):  # another process was faster
                return
            with atomic_directory(entry) as folder:
                write(folder)
                sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
                (folder / _MANIFEST).write_text(json.dumps(sizes))
            for other in entry.parent.iterdir():  # of earlier contents, or left by a crash
                if other.is_dir() and other != entry:
                    shutil.rmtree(other, ignore_errors=True)
    except (OSError, NotImplementedError) as error:  # the latter where a file system knows no locks
        raise DataError(f"cannot keep {name} in the cache ({error}); {_REMEDY}") from error


@contextmanager
def locked(path: Path, work: str) -> Iterator[None]:
    """Hold a lock between the processes of this machine; say what it does that is waited for ("reads a.json").

    And say so again now and then: only the main process's lines are shown, and it may be the one that waits.
    """
    lock, start, patience = FileLock(path), time.perf_counter(), 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            so_far = f": {time.perf_counter() - start:.0f} s so far" if patience else ""
            logger.info("Waiting for the process that %s%s", work, so_far)
            patience = LINE_EVERY
    try:
        yield
    finally:
        lock.release()


def _is_whole(entry: Path) -> bool:
    try:
        sizes = json.loads((entry / _MANIFEST).read_text())
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, ValueError):
        return False


def _require_space(source: Source, folder: Path, share: float) -> None:
    needed, free = int(source.size * share), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{source.path} takes about {in_units(needed)} in the cache {cache_folder()}, where"
            f" {in_units(free)} are free; {_REMEDY}"
        )


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 4096


def batched(
    rows: Iterable[Mapping[str, Any]], schema: pa.Schema, cost: Callable[[Mapping[str, Any]], int]
) -> Iterator[pa.RecordBatch]:
    """Rows as Arrow, many at a time. `cost` of a row is its size in bytes, roughly."""
    batch: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += cost(row)
        if size > _BATCH_BYTES or len(batch) >= _BATCH_ROWS:
            yield pa.RecordBatch.from_pylist(batch, schema=schema)
            batch, size = [], 0
    yield pa.RecordBatch.from_pylist(batch, schema=schema)


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a new Arrow file."""
    with pa.ipc.new_stream(str(path), schema) as stream:
        for batch in batches:
            stream.write_batch(batch)


class ArrowRows(Sequence[dict[str, Any]]):
    """The rows of an Arrow file. Pickled, it is the file's path: a loader's worker maps the file itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            self._batches = [batch for batch in stream if batch.num_rows]
        self._first = [0, *accumulate(batch.num_rows for batch in self._batches)]

    def __reduce__(self) -> tuple[type["ArrowRows"], tuple[Path]]:
        return ArrowRows, (self.path,)

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = bisect_right(self._first, index) - 1
        return self._batches[batch].slice(index - self._first[batch], 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches:
            yield from batch.to_pylist()
