"""One dataset: the records of its annotation files, put together as its row says, adapted when asked for."""

import hashlib
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from utils.conversation import Conversation, ConversationError, ImageError
from utils.data.bad_records import BadRecord, BadRecords, RecordPlace
from utils.data.readers.annotations import Unusable, open_records
from utils.data.readers.conversion_cache import Source, cached
from utils.data.spec import (
    FORMAT_ERRORS,
    Arrangement,
    DataError,
    DatasetSpec,
    LeftOut,
    Part,
    PictureStore,
    RawRecord,
)
from utils.plugins import wing

_DIGEST = "sha256"
_CHUNK = 1 << 20  # bytes
_MOST_CHUNKS = 1024  # of larger files so many, evenly spread, stand for all


class DatasetRecords:
    """The records of one dataset, counted through its annotation files in the order of its row.

    Opening a set reads nothing but what the cache lacks; it can be sent to a loader's workers.
    """

    def __init__(self, spec: DatasetSpec, data_path: Path, bad: BadRecords | None = None) -> None:
        """All parts must be there. An annotation file that cannot be read goes into `bad` and has no records
        here; without `bad`, and for an image store, it raises `DataError`.
        """
        self.spec = spec
        self.data_path = data_path
        self.places = tuple(_place(part, data_path) for part in spec.images)
        self.files = [self._opened(part, bad) for part in spec.annotations]
        self._first = [0, *accumulate(map(len, self.files))]

    def __len__(self) -> int:
        return self._first[-1]

    def content(self) -> str:
        """A digest of the annotation files, whatever their places and times of change; read once per machine.

        Raises `DataError` for a cache folder that cannot be written.
        """
        digest = hashlib.sha256()
        for part in self.spec.annotations:
            path = located(part, self.data_path)
            files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
            source = Source(path, tuple(files), "content")
            entry = cached(source, "contents", partial(_write_digest, files), share=0)
            digest.update((entry / _DIGEST).read_bytes())
        return digest.hexdigest()

    def arrange(self) -> Arrangement:
        """Which records make which conversation; one each, unless the dataset's row says otherwise."""
        if self.spec.arrange is not None:
            return self.spec.arrange(self.files)
        every = np.arange(len(self) + 1)
        return Arrangement(every[:-1], every, np.ones(len(self), dtype=np.int64))

    def place(self, index: int) -> RecordPlace:
        """Where record `index` is to be found."""
        file, number = self._find(index)
        return RecordPlace(self.spec.name, self.spec.annotations[file].path, number)

    def record(self, members: Sequence[int], rng: np.random.Generator) -> RawRecord:
        """The first of `members` as an adapter gets it, the others as its `related`."""
        first, *related = [self._raw(index, rng) for index in members]
        return replace(first, related=tuple(related)) if related else first

    def rng(self, seed: int, epoch: int, conversation: int) -> np.random.Generator:
        """What a conversation's adapter draws from: of its own in each epoch, and in each dataset."""
        return np.random.default_rng([seed, epoch, zlib.crc32(self.spec.name.encode()), conversation])

    def adapt(self, record: RawRecord) -> Conversation | LeftOut:
        """Raises `ConversationError` or `ImageError` that name the record, whatever is wrong with it."""
        if isinstance(record.fields, Unusable):
            raise record.error(record.fields.reason)
        if not isinstance(record.fields, dict):
            raise record.error(f"not a record (an object with named fields), but {record.fields!r:.40}")
        try:
            return self.spec.adapter(record)
        except (ConversationError, ImageError):
            raise
        except FORMAT_ERRORS as error:
            raise record.error(f"not in the format of {self.spec.name} ({error!r})") from error

    def _opened(self, part: Part, bad: BadRecords | None) -> Sequence[dict[str, Any]]:
        try:
            return open_records(located(part, self.data_path), part.key, is_own=not part.origin)
        except DataError as error:
            if bad is None:
                raise
            bad.add(BadRecord(RecordPlace(self.spec.name, part.path, None), str(error)))
            return []

    def _find(self, index: int) -> tuple[int, int]:
        """The file of a record, and its number there."""
        file = bisect_right(self._first, index) - 1
        return file, int(index) - self._first[file]

    def _raw(self, index: int, rng: np.random.Generator) -> RawRecord:
        file, number = self._find(index)
        return RawRecord(self.files[file][number], str(self.place(index)), self.places, rng, file)


def _write_digest(files: Sequence[Path], folder: Path) -> None:
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            for place in range(0, size, max(_CHUNK, size // _MOST_CHUNKS)):
                file.seek(place)
                digest.update(file.read(_CHUNK))
    (folder / _DIGEST).write_text(digest.hexdigest())


def located(part: Part, data_path: Path) -> Path:
    """Where a part is, which must be there."""
    path = part.locate(data_path)
    assert path is not None, f"{part.path} is missing: require_files comes first"
    return path


def _place(part: Part, data_path: Path) -> Path | PictureStore:
    path = located(part, data_path)
    if not part.is_store:
        return path
    open_archive = wing("utils.data.readers.image_archive.open_image_archive", str(path))
    return PictureStore(part.path, open_archive(path))
