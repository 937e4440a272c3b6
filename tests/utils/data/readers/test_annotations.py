"""Records of every kind of file, in order and as they are; what is damaged is named with what to do about it."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from utils.data.readers.annotations import Unusable, open_records
from utils.data.spec import DataError

MIXED = [
    {"id": 1, "image": "a.jpg"},
    {"id": "2", "image": ["b", "c"], "score": 1.5e300, "large": 10**30},
    {"text": 'ü \ud83d 🐕 \\ " \n\u2028', "deep": {"x": [None, True]}},
    {},
]
PLAIN = [{"id": "a", "turns": [{"from": "human", "value": "é"}]}, {"id": "b", "turns": []}]


def write_json(path: Path, content: Any, **options: Any) -> Path:
    path.write_text(json.dumps(content, **options), encoding="utf-8")
    return path


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": True}], ids=str)
def test_records_of_any_shape_survive(tmp_path: Path, options: dict) -> None:
    records = open_records(write_json(tmp_path / "mixed.json", MIXED, **options))
    assert len(records) == 4
    assert [records[index] for index in (3, 0, -2, 1)] == [MIXED[index] for index in (3, 0, 2, 1)]
    assert list(records) == MIXED
    assert list(pickle.loads(pickle.dumps(records))) == MIXED
    with pytest.raises(IndexError):
        records[4]


def test_a_list_under_a_key(tmp_path: Path) -> None:
    path = write_json(tmp_path / "k.json", {"info": {"a": [1]}, "other": [{"x": 1}], "images": PLAIN, "n": 2})
    assert list(open_records(path, "images")) == PLAIN
    assert list(open_records(path, "other")) == [{"x": 1}]  # another view of the same file


def test_an_object_of_objects_gives_each_its_id(tmp_path: Path) -> None:
    content = {"b": {"x": 1}, 'a "q"': {}, "c": {"id": "own", "y": [1]}, "ü\ud83d": {"z": None}}
    expected = [{"id": "b", "x": 1}, {"id": 'a "q"'}, {"id": "own", "y": [1]}, {"id": "ü\ud83d", "z": None}]
    assert list(open_records(write_json(tmp_path / "o.json", content))) == expected
    assert (
        list(open_records(write_json(tmp_path / "d.json", {"meta": 1, "data": content}), "data")) == expected
    )
    assert list(open_records(write_json(tmp_path / "e.json", {}))) == []


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(["", *map(json.dumps, MIXED), "  ", ""]))
    assert list(open_records(path)) == MIXED


def test_a_bad_line_is_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"id": 1}\n{"id": 2\n7\n{"id": "\xff"}\n{"id": 5}')
    first, second, third, fourth, fifth = open_records(path)
    assert (first, third, fifth) == ({"id": 1}, 7, {"id": 5})
    assert "line 2 is not valid JSON" in second.reason
    assert "line 4 is not UTF-8" in fourth.reason


def test_a_folder_saved_by_datasets(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(PLAIN)
    saved.select([1, 0]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=saved).save_to_disk(tmp_path / "only_train")
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(tmp_path / "two")
    assert list(open_records(tmp_path / "one")) == PLAIN[::-1]
    records = open_records(tmp_path / "only_train")
    assert [records[0], records[-1]] == PLAIN
    assert list(pickle.loads(pickle.dumps(records))) == PLAIN
    with pytest.raises(DataError, match=r"holds the splits train, test; name one: .*two/train"):
        open_records(tmp_path / "two")
    assert list(open_records(tmp_path / "two" / "test")) == PLAIN


def test_a_key_that_a_record_holds_twice_makes_it_unusable(tmp_path: Path) -> None:
    path = tmp_path / "twice.json"
    path.write_text('[{"a": 1}, {"a": {"b": 1, "c": 2, "b": 3}}, {"a": 2}]')
    assert list(open_records(path)) == [{"a": 1}, Unusable('the key "b" is in it twice'), {"a": 2}]


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "marked.json"
    path.write_text(json.dumps(PLAIN), encoding="utf-8-sig")
    assert list(open_records(path)) == PLAIN
    path = tmp_path / "marked.jsonl"
    path.write_text("\n".join(map(json.dumps, PLAIN)), encoding="utf-8-sig")
    assert list(open_records(path)) == PLAIN


# What is in the file, and what the one line about it has to say. All are named list.json; tests/helper/conftest.py has
# more.
GOOD = json.dumps(PLAIN).encode()
DAMAGED = {
    "cut off in a text": (
        b'[{"a": 1}, {"a": "bc',
        r"byte 11 \(line 1, after 1 values\): the file ends inside",
    ),
    "cut off in a record": (b'[{"a": 1},\n {"a": 2', r"byte 12 \(line 2.*ends inside the value"),
    "trailing text": (GOOD + b" garbage", r"byte \d+ .*something follows"),
    "lines in a .json": (b'{"a": {}}\n{"a": {}}', r"line 2.*\.jsonl"),
    "trailing comma": (b'[{"a": 1},]', r"byte 10 .*"),
    "no comma": (b'[{"a": 1} {"a": 2}]', r"byte 10 .*expected , or \], found '{'"),
    "single quotes": (b"[{'a': 1}]", r"byte 2 .*double quotes"),
    "Latin-1": ('[{"a": 1},\n{"a": "é"}]'.encode("latin-1"), r"byte 18 \(line 2.*not UTF-8"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "UTF-16"),
    "deep nesting": (b'[{"a": 1}, ' + b"[" * 200_000 + b"]" * 200_000 + b"]", r"byte 11 .*nested too deeply"),
    "a number without end": (b'[{"a": ' + b"9" * 5000 + b"}]", r"byte 1 .*digits"),
    "an object of no objects": (b'{"a": 1, "annotations": [{}]}', "under a key of their own"),
    "parquet": (b"PAR1 and so on", r"\.parquet"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named_in_one_line_and_leaves_nothing(
    tmp_path: Path, cache_entries: Callable[[str], list[Path]], kind: str
) -> None:
    content, expected = DAMAGED[kind]
    path = tmp_path / "list.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected) as caught:
        open_records(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    assert cache_entries("records") == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"info": 1, "image": []}', 'no key "images", but "info", "image"'),
        ("[{}]", 'expected an object with the key "images"'),
        ('{"images": [{}], "images": [{}]}', r'byte 26 .*the key "images" comes a second time'),
    ],
)
def test_a_file_without_its_key_is_named(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"list\.json.*{expected}"):
        open_records(path, "images")


def test_a_folder_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder that `datasets` saved whole"):
        open_records(tmp_path)


def test_a_folder_with_a_file_cut_off_is_named(tmp_path: Path) -> None:
    datasets.Dataset.from_list(PLAIN * 500).save_to_disk(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:3000])
    with pytest.raises(DataError, match="saved is not a folder that `datasets` saved whole"):
        open_records(tmp_path / "saved")
