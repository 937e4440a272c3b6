"""An index is made once for all processes and runs, and again when what it says may have changed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.data.mixing import index as index_module
from utils.data.mixing.dataset import DatasetRecords
from utils.data.mixing.index import DatasetIndex, index_dataset
from utils.data.registry import DATASETS

MakeRecord = Callable[..., dict]
WriteRoot = Callable[..., Path]


def indexed(root: Path, name: str = "llava") -> DatasetIndex:
    return index_dataset(DatasetRecords(DATASETS[name], root))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The datasets that were looked through."""
    names: list[str] = []
    make = index_module._write

    def counted(records: DatasetRecords, folder: Path) -> None:
        names.append(records.spec.name)
        make(records, folder)

    monkeypatch.setattr(index_module, "_write", counted)
    return names


def test_what_is_kept_is_what_was_made(write_root: WriteRoot, record: MakeRecord, made: list[str]) -> None:
    records = [record(0), record(1, pictures=0), {"no": "record"}, record(5, pictures=3), record(0)]
    root = write_root(records[:2], records[2:])
    first, again = indexed(root), indexed(root)
    assert made == ["llava"]
    for known in (first, again):
        assert known.status.tolist() == [0, 0, -1, 0, 0]
        assert known.image_counts.tolist() == [1, 0, 0, 3, 1]
        assert known.first_images[0] == known.first_images[4] != known.first_images[3]
        assert known.reasons == ("not in the format of llava (KeyError('conversations'))",)
        assert known.arrangement.members.tolist() == list(range(5))


@pytest.mark.parametrize("changed", ["annotations", "images", "adapter"])
def test_an_index_is_made_again_when_something_has_changed(
    write_root: WriteRoot,
    record: MakeRecord,
    made: list[str],
    changed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = write_root([record(0)], [record(1)])
    indexed(root)
    if changed == "annotations":
        write_root([record(0), record(2)], [record(1)])
    elif changed == "images":
        (root / "coco" / "train2017" / "new.jpg").touch()
        os.utime(root / "coco" / "train2017", ns=(0, 0))
    else:
        (tmp_path / "adapter.py").touch()
        monkeypatch.setattr(index_module, "_code", lambda spec: [tmp_path / "adapter.py"])
    indexed(root)
    assert made == ["llava", "llava"]


def test_records_that_are_no_objects_are_bad(
    tmp_path: Path, write_root: WriteRoot, record: MakeRecord
) -> None:
    root = write_root([record(0)])
    (root / "llava" / "detail_23k.json").write_text(json.dumps([record(0), 7, None, ["a"]]))
    known = indexed(root)
    assert known.status.tolist() == [0, -1, -2, -3]
    assert known.reasons[0] == "not a record (an object with named fields), but 7"
