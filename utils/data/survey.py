"""What is known of every conversation of a dataset without reading it again: made once per machine, and kept.

Grouping needs the number of images of every conversation, the split its first picture, and the user a list of
what cannot be used. To know them every record is adapted once (in its first epoch: what an adapter draws may
change words, not images); the result is some bytes a record, in the cache beside the records themselves.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.data.all_cores import each_item
from utils.data.cache import Source, cached
from utils.data.look import Looks
from utils.data.record_set import RecordSet, located
from utils.data.spec import Arrangement

_ARRAYS = "arrays.npz"
_TEXTS = "texts.json"


@dataclass(frozen=True, eq=False)
class Survey:
    """All n conversations that a dataset's records make, sound or not.

    Conversation u is usable where `fates[u]` is 0, left out by the rule `rules[fates[u] - 1]` where it is
    above, and bad for `reasons[-fates[u] - 1]` where it is below.
    """

    arrangement: Arrangement
    fates: np.ndarray  # [n] int32
    image_counts: np.ndarray  # [n] int64, 0 where not usable
    absent: np.ndarray  # [n] int64, pictures that are named but not in the image store
    pictures: np.ndarray  # [n] uint64, equal where the first picture is the same
    systems: np.ndarray  # [n] uint64, equal where the system text is the same
    rules: tuple[str, ...]
    reasons: tuple[str, ...]
    repairs: dict[str, int] = field(default_factory=dict)  # conversations of which something was mended
    identity: str = ""  # of files and adapters that it was made of

    def __len__(self) -> int:
        return len(self.fates)


def survey(records: RecordSet) -> Survey:
    """The survey of a dataset, from the cache, where it is put first if files or adapters have changed.

    Processes that start together wait for the one that makes it. Raises `DataError` for a cache folder that
    cannot be written.
    """
    spec, data_path = records.spec, records.data_path
    parts = [located(part, data_path) for part in (*spec.annotations, *spec.images)]
    variant = f"{spec.name} {data_path.resolve()} {[len(file) for file in records.files]}"
    # A folder of images changes when files come and go in it.
    source = Source(parts[0], (*parts, *_code()), variant)
    return _read(
        cached(source, "surveys", lambda folder: _write(_make(records), folder), share=0, is_quiet=True)
    )


def _make(records: RecordSet) -> Survey:
    arrangement = records.arrange()
    total = len(arrangement)
    fates = np.zeros(total, dtype=np.int32)
    image_counts, absent = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    pictures, systems = np.zeros(total, dtype=np.uint64), np.zeros(total, dtype=np.uint64)
    rules: dict[str, int] = {}
    reasons: list[str] = []
    repairs: Counter[str] = Counter()
    looks = each_item(Looks(records, arrangement), f"looking through {records.spec.name} (once)")
    for number, look in enumerate(looks):
        image_counts[number], absent[number] = look.images, look.absent
        pictures[number], systems[number] = look.picture, look.system
        repairs.update(look.repairs)
        if look.rule is not None:
            fates[number] = rules.setdefault(look.rule, len(rules) + 1)
        elif look.problem is not None:
            reasons.append(look.problem)
            fates[number] = -len(reasons)
    return Survey(
        arrangement,
        fates,
        image_counts,
        absent,
        pictures,
        systems,
        tuple(rules),
        tuple(reasons),
        dict(repairs),
    )


def _code() -> list[Path]:
    """The files that decide what a record becomes."""
    here = Path(__file__).parent
    deciding = ("spec.py", "registry.py", "record_set.py", "look.py", "survey.py")
    return [
        *sorted((here / "adapters").glob("*.py")),
        *(here / name for name in deciding),
        here.parent / "conversation.py",
    ]


def _write(made: Survey, folder: Path) -> None:
    np.savez(
        folder / _ARRAYS,
        members=made.arrangement.members,
        borders=made.arrangement.borders,
        own=made.arrangement.own,
        fates=made.fates,
        image_counts=made.image_counts,
        absent=made.absent,
        pictures=made.pictures,
        systems=made.systems,
    )
    (folder / _TEXTS).write_text(
        json.dumps({"rules": made.rules, "reasons": made.reasons, "repairs": made.repairs})
    )


def _read(entry: Path) -> Survey:
    texts = json.loads((entry / _TEXTS).read_text())
    with np.load(entry / _ARRAYS) as arrays:
        return Survey(
            Arrangement(arrays["members"], arrays["borders"], arrays["own"]),
            arrays["fates"],
            arrays["image_counts"],
            arrays["absent"],
            arrays["pictures"],
            arrays["systems"],
            tuple(texts["rules"]),
            tuple(texts["reasons"]),
            texts["repairs"],
            identity=f"{entry.parent.name}/{entry.name}",
        )
