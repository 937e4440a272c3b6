"""Which conversations of a dataset are used, and an account of all its records: none is lost without a word."""

import zlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from utils.conversation import ConversationError
from utils.data.bad_records import BadRecord, BadRecords
from utils.data.mixing.dataset import DatasetRecords
from utils.data.mixing.index import DatasetIndex
from utils.data.spec import DataError
from utils.distributed import get_logger

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


@dataclass(frozen=True, eq=False)
class Selection:
    """Places in the index of the conversations that are used, in order, and the account."""

    chosen: np.ndarray  # [c] int64
    account: RecordCounts


def select(
    records: DatasetRecords,
    known: DatasetIndex,
    samples: str | int,
    max_images: int,
    seed: int,
    bad: BadRecords | None = None,
) -> Selection:
    """Choose `samples` conversations at random, or all, of those that no rule leaves out.

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
    return Selection(chosen, account)


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
