"""Annotation files are converted once, outside the data folder, and are complete or not there."""

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from utils.data import sources
from utils.data.sources import open_records
from utils.data.spec import DataError

MIXED = [
    {"id": 1, "image": "a.jpg"},
    {"id": "2", "image": ["b", "c"]},
    {"text": "ü \ud83d 🐕", "deep": {"x": [None]}},
    {},
]


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "records").iterdir() if path.is_dir())


def test_records_of_any_shape_survive(tmp_path: Path) -> None:
    (tmp_path / "mixed.json").write_text(json.dumps(MIXED))
    records = open_records(tmp_path / "mixed.json")
    assert len(records) == 4
    assert [records[index] for index in (3, 0, 2, 1)] == [MIXED[index] for index in (3, 0, 2, 1)]
    assert list(records) == MIXED
    assert list(pickle.loads(pickle.dumps(records))) == MIXED


@pytest.mark.parametrize("size", [0, 1, 2, 2500])
def test_any_number_of_records(tmp_path: Path, size: int) -> None:
    (tmp_path / "list.json").write_text(json.dumps([{"id": index} for index in range(size)]))
    assert [record["id"] for record in open_records(tmp_path / "list.json")] == list(range(size))


def test_a_file_is_read_once_and_the_data_folder_stays_as_it_was(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "list.json"
    path.write_text("[{}]")
    open_records(path)
    monkeypatch.setattr(sources, "_read_list", None)  # a second reading would fail
    assert len(open_records(path)) == 1
    assert os.listdir(folder) == ["list.json"]
    assert len(entries(cache)) == 1


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[{}]")
    assert len(open_records(path)) == 1
    path.write_text("[{}, {}]")
    assert len(open_records(path)) == 2


@pytest.mark.parametrize("content", ['[{"id": 1}, {"id"', "", "[1, 2]", '{"id": 1}', "\x80"])
def test_a_damaged_file_is_named_and_leaves_nothing(tmp_path: Path, cache: Path, content: str) -> None:
    path = tmp_path / "cut.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"cut\.json.*fetch it again"):
        open_records(path)
    assert entries(cache) == []


def test_a_crash_while_converting_leaves_no_entry(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list.json"
    path.write_text("[{}, {}]")

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sources.ArrowWriter, "finalize", crash)
        with pytest.raises(KeyboardInterrupt):
            open_records(path)
    assert [entry for entry in entries(cache) if not entry.name.startswith(".")] == []
    assert len(open_records(path)) == 2


def test_a_cache_that_cannot_be_written_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.json").write_text("[]")
    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path / "list.json" / "below"))
    with pytest.raises(DataError, match="set VISUALCHAT_CACHE"):
        open_records(tmp_path / "list.json")


def _length(path: Path) -> int:
    return len(open_records(path))


def test_processes_that_start_together_share_one_conversion(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"id": index} for index in range(5000)]))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_length, [path] * 4) == [5000] * 4
    assert len(entries(cache)) == 1
