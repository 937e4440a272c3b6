"""Where records are to be found, and which samples come from them; bad records, left out, counted and listed.

A record is bad where nothing can be learned from it as it stands: it is not in its dataset's format, a picture
of it is missing or damaged, no token of it is supervised. Bad records are never replaced by others, and there are
never more than the user allows. Records that a published rule leaves out are sound, and counted elsewhere (`LeftOut`).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from utils.atomic import atomic_write
from utils.conversation import Conversation
from utils.data.spec import DataError
from utils.images import shortened

BAD_SAMPLES = "bad_samples.jsonl"
"""The list's name in the output folder."""

_LONGEST_REASON = 1000  # characters; a longer one quotes the data


class BadDataError(DataError):
    """More bad data than the user allows; the message is one line, names records and says what to do."""


@dataclass(frozen=True, order=True)
class RecordPlace:
    """Where a record is to be found: its dataset's name, the annotation file below the data folder, and its
    number in the file, from 0 (None: the file as a whole)."""

    dataset: str
    file: str
    index: int | None

    def __str__(self) -> str:
        return self.file if self.index is None else f"{self.file}#{self.index}"


@dataclass(frozen=True)
class SourceRecord:
    """One of the records that a conversation is joined of, and the conversation that it makes alone.

    `records` are more than one where related records make that one together; `place` is then the first one's.
    `read` raises `ConversationError` where the record is bad. A mixture has a method `records_of(index)` that
    gives those of one of its conversations, so that a bad record costs the others nothing.
    """

    place: RecordPlace
    read: Callable[[], Conversation] = field(compare=False)
    records: int = 1


@dataclass(frozen=True)
class Origin:
    """The records that a conversation in a batch was joined of, and how many of its tokens are supervised.

    A batch lists its conversations in order, and so the dataset of each of its supervised tokens is known
    without anything as long as the batch itself.
    """

    places: tuple[RecordPlace, ...]
    supervised: int

    @property
    def dataset(self) -> str:
        """The dataset of all its records: others are never joined with them."""
        return self.places[0].dataset


def origin_at(origins: Sequence[Origin], token: int) -> Origin:
    """The conversation of a batch that its supervised token number `token` belongs to, counted from 0."""
    for origin in origins:
        if token < origin.supervised:
            return origin
        token -= origin.supervised
    raise IndexError("the batch has fewer supervised tokens")


@dataclass(frozen=True)
class BadRecord:
    """A bad record and what is wrong with it."""

    place: RecordPlace
    reason: str

    @classmethod
    def of(cls, place: RecordPlace, error: Exception) -> "BadRecord":
        """From the error that reading the record raised."""
        return cls(place, reason_of(error, place))


def reason_of(error: Exception, place: object) -> str:
    """An error as one line, cut where it is long; the place that it may begin with is not repeated."""
    return shortened(" ".join(str(error).split()).removeprefix(f"{place}: "), _LONGEST_REASON)


class BadRecords:
    """The bad records of a run, each once, whatever the order in which they were found.

    `build_dataset(..., bad=...)` puts those in that are not in their dataset's format and leaves them out of the
    mixture; what shows only when texts are encoded and pictures decoded is added while the data are read.

    `total`, the number of records that the run uses, bad ones included, is what `max_fraction` is a share of:
    so the verdict does not depend on where in the data the bad ones are. A single bad record is let pass in
    any set, unless `max_fraction` is 0; a file that cannot be read at all is let pass only by a `max_fraction`
    of 1, since nobody knows how many records are lost with it.
    """

    def __init__(self, max_fraction: float = 0.001, strict: bool = False, path: Path | None = None) -> None:
        """`strict` refuses the first bad record; `path` is the file that `write` makes, and messages name."""
        self.max_fraction, self.strict, self.path = max_fraction, strict, path
        self.total = 0
        self._reasons: dict[RecordPlace, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, place: RecordPlace) -> bool:
        return place in self._reasons

    def sorted(self) -> list[BadRecord]:
        """All bad records, by dataset, file and index."""
        places = sorted(self._reasons, key=lambda place: (place.dataset, place.file, place.index or 0))
        return [BadRecord(place, self._reasons[place]) for place in places]

    def add(self, found: BadRecord) -> None:
        """Note a bad record; raises `BadDataError` where `strict`.

        Of several reasons (another caption drawn in another epoch) the first in the alphabet is kept, so that
        the list depends on what was found, not on when.
        """
        known = self._reasons.get(found.place)
        self._reasons[found.place] = found.reason if known is None else min(known, found.reason)
        if self.strict:
            raise BadDataError(
                f"{found.place}: {found.reason} (dataset {found.place.dataset}; --strict stops at the first"
                " bad record: repair it, or leave out --strict to skip such records and list them)"
            )

    def extend(self, found: Iterable[BadRecord]) -> None:
        """Note several; see `add`."""
        for bad in found:
            self.add(bad)

    def check(self) -> None:
        """Raise `BadDataError` where there are more than `max_fraction` of `total` records."""
        unread = [bad for bad in self.sorted() if bad.place.index is None]
        if unread and self.max_fraction < 1:
            is_own = all(bad.place.dataset == bad.place.file for bad in unread)  # a path in a name's place
            mend = "Repair" if is_own else "Fetch or repair"
            raise BadDataError(f"{_listed(unread)}. {mend} that, or train without it: --max_bad_fraction 1")
        allowed = max(int(self.max_fraction * self.total), 1 if self.max_fraction > 0 else 0)
        if len(self) > allowed:
            listed_in = f"; all that were found so far are listed in {self.path}" if self.path else ""
            raise BadDataError(
                f"{len(self):,} of {self.total:,} records are bad ({len(self) / max(self.total, 1):.2%}), more"
                f" than --max_bad_fraction {self.max_fraction:g} allows: {_listed(self.sorted())}{listed_in}."
                " Repair them (helper.check_data with the same flags finds all at once), or raise"
                " --max_bad_fraction"
            )

    def summary(self) -> str:
        """How many there are, and where they are listed."""
        if not self._reasons:
            return f"no bad record among {self.total:,}"
        listed_in = f", listed in {self.path}" if self.path else ""
        share = f" ({len(self) / self.total:.2%})" if self.total else ""
        return f"{len(self):,} bad of {self.total:,} records{share}{listed_in}"

    def write(self) -> None:
        """Write the list to `path`, a JSON object a line; complete or not at all. For the main process."""
        assert self.path is not None
        lines = [
            json.dumps({**asdict(bad.place), "reason": bad.reason}, ensure_ascii=False)
            for bad in self.sorted()
        ]
        # Where a text holds half a character, "\\ud83d" is JSON's own way to write it.
        atomic_write(self.path, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))

    def restore(self) -> None:
        """Take over the list that an earlier part of the same run has written, if there is one."""
        assert self.path is not None
        if self.path.is_file():
            for bad in read_bad_samples(self.path):
                self._reasons.setdefault(bad.place, bad.reason)


def read_bad_samples(path: Path) -> list[BadRecord]:
    """The records of a `bad_samples.jsonl`. Raises `DataError` where it is not one."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            BadRecord(RecordPlace(row["dataset"], row["file"], row["index"]), row["reason"]) for row in rows
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a list of bad samples ({error!r}); remove it") from error


def _listed(bad: list[BadRecord], most: int = 3) -> str:
    shown = "; ".join(
        each.reason if each.place.file in each.reason else f"{each.place}: {each.reason}"
        for each in bad[:most]
    )
    return shown + (f"; and {len(bad) - most:,} more" if len(bad) > most else "")
