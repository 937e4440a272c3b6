"""The list of bad records depends on what was found, not on when; and says no in one line."""

import json
from itertools import permutations
from pathlib import Path

import pytest

from utils.data import BadDataError, BadRecord, BadRecords, DataError
from utils.data.bad_records import RecordPlace, read_bad_samples


def bad(index: int | None, reason: str = "the answer is empty", file: str = "a.json") -> BadRecord:
    return BadRecord(RecordPlace("own", file, index), reason)


def filled(count: int, total: int, max_fraction: float = 0.001) -> BadRecords:
    records = BadRecords(max_fraction)
    records.total = total
    records.extend(bad(index) for index in range(count))
    return records


def test_the_file_is_sorted_complete_and_the_same_in_any_order(tmp_path: Path) -> None:
    found = [bad(10), bad(9), bad(3, file="b.json"), bad(9, "another reason"), bad(None, "cut", "c.json")]
    written = set()
    for order in permutations(found):
        records = BadRecords(path=tmp_path / "bad_samples.jsonl")
        records.extend(order)
        records.write()
        written.add((tmp_path / "bad_samples.jsonl").read_text())
    [text] = written
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows == [
        {"dataset": "own", "file": "a.json", "index": 9, "reason": "another reason"},
        {"dataset": "own", "file": "a.json", "index": 10, "reason": "the answer is empty"},
        {"dataset": "own", "file": "b.json", "index": 3, "reason": "the answer is empty"},
        {"dataset": "own", "file": "c.json", "index": None, "reason": "cut"},
    ]


def test_what_was_written_is_taken_over(tmp_path: Path) -> None:
    records = BadRecords(path=tmp_path / "bad_samples.jsonl")
    records.restore()  # nothing there yet
    records.extend([bad(2), bad(None, "cut", "c.json"), bad(1, "ünïcödé, and half a \ud83d")])
    records.write()
    again = BadRecords(path=records.path)
    again.restore()
    again.add(bad(2))
    assert again.sorted() == records.sorted()
    (tmp_path / "bad_samples.jsonl").write_text('{"dataset": "own"}\n')
    with pytest.raises(DataError, match=r"bad_samples\.jsonl is not a list of bad samples .*; remove it"):
        read_bad_samples(tmp_path / "bad_samples.jsonl")


@pytest.mark.parametrize(
    ("count", "total", "max_fraction", "passes"),
    [
        (0, 0, 0.001, True),
        (10, 10_000, 0.001, True),
        (11, 10_000, 0.001, False),
        (1, 20, 0.001, True),  # one is let pass in any set
        (2, 20, 0.001, False),
        (1, 20, 0.0, False),  # unless none is allowed
        (6, 10, 0.5, False),
    ],
)
def test_the_share_is_one_of_all_records(count: int, total: int, max_fraction: float, passes: bool) -> None:
    records = filled(count, total, max_fraction)
    if passes:
        records.check()
    else:
        with pytest.raises(BadDataError, match=f"{count} of {total:,} records are bad .*max_bad_fraction"):
            records.check()


def test_a_file_that_cannot_be_read_is_too_much_of_any_set() -> None:
    records = filled(0, 10**6, max_fraction=0.5)
    records.add(bad(None, "own/c.json is damaged at byte 7", "own/c.json"))
    with pytest.raises(BadDataError, match=r"^own/c\.json is damaged at byte 7\. Fetch or repair that, or"):
        records.check()
    records.max_fraction = 1
    records.check()


def test_strict_stops_at_the_first() -> None:
    records = BadRecords(strict=True)
    with pytest.raises(BadDataError, match=r"a\.json#4: the answer is empty \(dataset own; --strict"):
        records.extend([bad(4), bad(5)])
    assert records.sorted() == [bad(4)]


def test_the_message_shows_three_and_where_all_are(tmp_path: Path) -> None:
    records = filled(5, 100)
    records.path = tmp_path / "bad_samples.jsonl"
    with pytest.raises(BadDataError) as raised:
        records.check()
    message = str(raised.value)
    assert "a.json#2: the answer is empty; and 2 more" in message and "a.json#3" not in message
    assert str(records.path) in message and "\n" not in message
