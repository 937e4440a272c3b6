"""What is known of every conversation of a dataset without reading it again, and which are used.

Joining needs the number of images of every conversation, the split its first image, and the user a list of
what cannot be used. To know them every record is adapted once (in its first epoch: what an adapter draws may
change words, not images), once per machine; the result is some bytes a record, in the cache beside the records
themselves. `select` accounts for all records: none is lost without a word.
"""

import hashlib
import inspect
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from utils.conversation import Conversation, ConversationError, ImageError
from utils.data.bad_records import BadRecord, BadRecords, reason_of
from utils.data.mixing.dataset import DatasetRecords, located
from utils.data.readers.conversion_cache import Source, cached
from utils.data.spec import Arrangement, DataError, DatasetSpec, LeftOut, RawRecord
from utils.data.workers import parallel_map
from utils.distributed import get_logger

_ARRAYS, _TEXTS = "arrays.npz", "texts.json"
_ARRANGEMENT = ("members", "borders", "own")
_COLUMNS = {
    "status": np.int32,
    "image_counts": np.int64,
    "absent": np.int64,
    "first_images": np.uint64,
    "systems": np.uint64,
}


@dataclass(frozen=True, eq=False)
class DatasetIndex:
    """All n conversations that a dataset's records make, sound or not.

    Conversation u is usable where `status[u]` is 0, left out by the rule `rules[status[u] - 1]` where it is
    above, and bad for `reasons[-status[u] - 1]` where it is below.
    """

    arrangement: Arrangement
    status: np.ndarray  # [n] int32
    image_counts: np.ndarray  # [n] int64, 0 where not usable
    absent: np.ndarray  # [n] int64, images that are named but not in the image archive
    first_images: np.ndarray  # [n] uint64, equal where the first image is the same
    systems: np.ndarray  # [n] uint64, equal where the system text is the same
    rules: tuple[str, ...]
    reasons: tuple[str, ...]
    repairs: dict[str, int]  # conversations of which something was mended
    identity: str  # of files and adapters that it was made of

    def __len__(self) -> int:
        return len(self.status)


def index_dataset(records: DatasetRecords) -> DatasetIndex:
    """The index of a dataset, from the cache, where it is put first if files or adapters have changed.

    Processes that start together wait for the one that makes it. Raises `DataError` for a cache folder that
    cannot be written.
    """
    spec, data_path = records.spec, records.data_path
    parts = tuple(located(part, data_path) for part in (*spec.annotations, *spec.images))
    code = hashlib.sha256(b"\0".join(path.read_bytes() for path in _code(spec))).hexdigest()
    variant = f"{spec.name} {data_path.resolve()} {[len(file) for file in records.files]} {code}"
    # A folder of images changes when files come and go in it.
    source = Source(parts[0], parts, variant)
    entry = cached(source, "indexes", lambda folder: _write(records, folder), share=0)
    texts = json.loads((entry / _TEXTS).read_text())
    with np.load(entry / _ARRAYS) as arrays:
        return DatasetIndex(
            Arrangement(**{name: arrays[name] for name in _ARRANGEMENT}),
            **{name: arrays[name] for name in _COLUMNS},
            rules=tuple(texts["rules"]),
            reasons=tuple(texts["reasons"]),
            repairs=texts["repairs"],
            identity=f"{entry.parent.name}/{entry.name}",
        )


def _write(records: DatasetRecords, folder: Path) -> None:
    arrangement = records.arrange()
    columns = {name: np.zeros(len(arrangement), dtype=kind) for name, kind in _COLUMNS.items()}
    rules: dict[str, int] = {}
    reasons: list[str] = []
    repairs: Counter[str] = Counter()
    summaries: Iterator[RecordSummary] = parallel_map(
        RecordSummaries(records, arrangement), f"looking through {records.spec.name} (once)"
    )
    for number, each in enumerate(summaries):
        status = 0
        if each.rule is not None:
            status = rules.setdefault(each.rule, len(rules) + 1)
        elif each.problem is not None:
            reasons.append(each.problem)
            status = -len(reasons)
        values = (status, each.images, each.absent, each.first_image, each.system)
        for column, value in zip(columns.values(), values, strict=True):
            column[number] = value
        repairs.update(each.repairs)
    arranged = {name: getattr(arrangement, name) for name in _ARRANGEMENT}
    np.savez(folder / _ARRAYS, **arranged, **columns)
    (folder / _TEXTS).write_text(json.dumps({"rules": list(rules), "reasons": reasons, "repairs": repairs}))


def _code(spec: DatasetSpec) -> list[Path]:
    """The files that decide what a record becomes."""
    data = Path(__file__).parents[1]
    deciding = ("spec.py", "registry.py", "mixing/dataset.py", "mixing/index.py", "../conversation.py")
    adapter = spec.adapter.func if isinstance(spec.adapter, partial) else spec.adapter
    adapter = adapter if inspect.isroutine(adapter) else type(adapter)  # an object that can be called
    files = [*sorted((data / "adapters").glob("*.py")), *(data / name for name in deciding)]
    return [*files, Path(inspect.getfile(adapter))]  # of a plugin, perhaps


@dataclass(frozen=True)
class RecordSummary:
    """A conversation, or the `rule` that leaves it out, or the `problem` that makes it bad."""

    images: int = 0
    absent: int = 0  # images that it names and its image archive lacks
    first_image: int = 0  # a fingerprint of it, of the record's place where there is none
    system: int = 0  # a fingerprint of the system text, 0 where there is none
    rule: str | None = None
    problem: str | None = None
    repairs: tuple[str, ...] = ()  # what was left out or joined to make a conversation of it


class RecordSummaries(Dataset[RecordSummary]):
    """Of each conversation of a dataset, in its first epoch: what adapters draw changes words alone."""

    def __init__(self, records: DatasetRecords, arrangement: Arrangement) -> None:
        self._records, self._arrangement = records, arrangement
        folders = [records.data_path, *(place for place in records.places if isinstance(place, Path))]
        self._roots = [os.path.join(folder, "") for folder in folders]  # as strings: the quickest to compare

    def __len__(self) -> int:
        return len(self._arrangement)

    def __getitem__(self, number: int) -> RecordSummary:
        records, members = self._records, self._arrangement[number].tolist()
        record = records.record(members, records.rng(0, 0, number))
        try:
            adapted = records.adapt(record)
            absent = _absent(records, record, adapted)
        except (ConversationError, ImageError) as error:
            return RecordSummary(problem=reason_of(error, records.place(members[0])))
        if isinstance(adapted, LeftOut):
            return RecordSummary(absent=absent, rule=adapted.reason)
        return RecordSummary(
            images=len(adapted.images),
            absent=absent,
            first_image=_fingerprint(self._first_image(adapted)),
            system=0 if adapted.system is None else _fingerprint(adapted.system.encode()),
            repairs=adapted.repairs,
        )

    def _first_image(self, conversation: Conversation) -> bytes:
        """What the first image is known by wherever the data folder is, or the record where there is none.

        A file is known by its path below the data folder or the image folder, an image in an annotation file
        by its bytes.
        """
        if not conversation.images:
            return conversation.source.encode()
        image = conversation.images[0]
        if isinstance(image.source, bytes):
            return image.source
        if isinstance(image.source, str | Path):
            path = str(image.source)
            root = next((root for root in self._roots if path.startswith(root)), "")
            return path[len(root) :].encode()
        return image.name.encode()


def _absent(records: DatasetRecords, record: RawRecord, adapted: Conversation | LeftOut) -> int:
    if records.spec.image_names is None:
        return 0
    shown = len(adapted.images) if isinstance(adapted, Conversation) else 0
    return len(records.spec.image_names(record)) - shown


def _fingerprint(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


logger = get_logger(__name__)


@dataclass(frozen=True)
class RecordCounts:
    """What became of the `records` of a dataset: `used + sum(left_out.values()) + bad + not_asked` are all.

    `left_out` counts them by the rule that leaves them out; `not_asked` are those that a number of samples
    leaves over. `conversations` is what the used ones make before any concatenation, `absent_images` how many
    pictures are named by records of an image store that does not have them, `repairs` of how many conversations
    something was left out or joined, by what it was.
    """

    records: int
    used: int
    left_out: dict[str, int]
    bad: int
    not_asked: int
    conversations: int
    absent_images: int
    repairs: dict[str, int] = field(default_factory=dict)


def select(
    records: DatasetRecords,
    known: DatasetIndex,
    samples: str | int,
    max_images: int,
    seed: int,
    bad: BadRecords | None = None,
) -> tuple[np.ndarray, RecordCounts]:
    """Choose `samples` conversations at random, or all, of those that no rule leaves out.

    Returns places in the index, in order, [c] int64, and the account.

    Bad records among them go into `bad`, and are not used. Raises `DataError` for a number of samples that is
    none, and without `bad` `ConversationError` for the first bad record.
    """
    too_many = (known.status == 0) & (known.image_counts > max_images)
    candidates = np.flatnonzero((known.status <= 0) & ~too_many)
    asked = _sample(records.spec.name, candidates, samples, seed)
    is_bad = known.status[asked] < 0
    for index in asked[is_bad].tolist():
        _note(records, known, index, bad)
    if bad is not None:
        bad.total += len(asked)

    own = known.arrangement.own
    left_out: Counter[str] = Counter()
    for number, rule in enumerate(known.rules, start=1):
        left_out[rule] += int(own[known.status == number].sum())
    if too_many.any():
        left_out[f"more than {max_images} images (--max_num_image_per_sample)"] += int(own[too_many].sum())
    chosen = asked[~is_bad]
    account = RecordCounts(
        records=int(own.sum()),
        used=int(own[chosen].sum()),
        left_out=dict(left_out),
        bad=int(own[asked[is_bad]].sum()),
        not_asked=int(own[candidates].sum() - own[asked].sum()),
        conversations=len(chosen),
        absent_images=int(known.absent.sum()),
        repairs=known.repairs,
    )
    _log(records.spec.name, account, len(known))
    return chosen, account


def _sample(name: str, candidates: np.ndarray, samples: str | int, seed: int) -> np.ndarray:
    if samples == "all":
        return candidates
    if not str(samples).isdecimal() or int(samples) < 1:
        raise DataError(f"--dataset_samples is {samples!r} for {name}; it has to be a positive number or all")
    if int(samples) > len(candidates):
        logger.warning(
            "%s has %d records, fewer than the %s asked for: all are taken", name, len(candidates), samples
        )
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return np.sort(rng.permutation(candidates)[: int(samples)])


def _note(records: DatasetRecords, known: DatasetIndex, index: int, bad: BadRecords | None) -> None:
    place = records.place(int(known.arrangement[index][0]))
    reason = known.reasons[-int(known.status[index]) - 1]
    if bad is None:
        raise ConversationError(f"{place}: {reason}")
    bad.add(BadRecord(place, reason))


def _log(name: str, account: RecordCounts, conversations: int) -> None:
    for rule, count in account.left_out.items():
        logger.info("%s: %d of %d records left out: %s", name, count, account.records, rule)
    for repair, count in account.repairs.items():
        logger.info("%s: %s, in %s of %s conversations", name, repair, f"{count:,}", f"{conversations:,}")
    if account.absent_images:
        logger.info("%s: %d images are named that are not in its image store", name, account.absent_images)
    if account.records and not (account.used or account.bad):
        logger.warning("%s: none of its %d records can be used", name, account.records)
