"""Records in parquet files: in order and as they are; what is damaged is named with what to do about it."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import utils.data.readers.parquet  # noqa: F401 (what this is about: it may be left out of a copy)
from utils.data import build_dataset
from utils.data.readers.annotations import open_records
from utils.data.spec import DataError


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    rows = [
        {"id": str(index), "image": {"bytes": b"\xff\xd8", "path": None}, "n": [index]}
        for index in range(300)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=70)
    records = open_records(path)
    assert len(records) == 300
    assert records[299] == rows[299]
    assert list(pickle.loads(pickle.dumps(records))) == rows


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    rows = [{"id": str(index), "n": [index]} for index in range(50)]
    for shard in (1, 0):
        pq.write_table(
            pa.Table.from_pylist(rows[shard * 20 : shard * 30 + 20]), tmp_path / f"{shard}.parquet"
        )
    assert list(open_records(tmp_path)) == rows
    pq.write_table(pa.table({"id": [1]}), tmp_path / "2.parquet")
    with pytest.raises(DataError, match=r"2\.parquet has the columns id, others than .*0\.parquet \(id, n\)"):
        open_records(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"[{}]", bytes(4096)])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "records.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"records\.parquet is not a valid parquet file.*fetch it again"):
        open_records(path)


def test_files_of_ones_own_are_names_and_so_is_their_folder(tmp_path: Path) -> None:
    for number, name in enumerate(["a.parquet", "b.PARQUET"]):
        said = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": f"Number {number}."}]
        pq.write_table(pa.Table.from_pylist([{"conversations": said}]), tmp_path / name)
    for name, numbers in {tmp_path: [0, 1], tmp_path / "b.PARQUET": [1]}.items():
        answers = sorted(each.turns[0].answer for each in build_dataset([str(name)], "nowhere"))
        assert answers == [f"Number {number}." for number in numbers]
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(DataError, match=r"is not a valid parquet file [^\n]*; write it again"):
        build_dataset([str(tmp_path / "a.parquet")], "nowhere")


def test_a_parquet_file_with_a_damaged_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    pq.write_table(pa.table({"a": [str(index) * 50 for index in range(5000)]}), path, compression="gzip")
    content = bytearray(path.read_bytes())
    content[500:1500] = b"?" * 1000
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"records\.parquet is not a valid parquet file"):
        open_records(path)
