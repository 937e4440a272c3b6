"""Stores of pictures: all there, found by their ids, in little memory, whatever the size of the file."""

import base64
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader, Dataset

from utils.conversation import ImageError
from utils.data.readers import image_archive
from utils.data.readers.image_archive import ImageArchive, open_image_archive
from utils.data.spec import DataError

ROOT = Path(__file__).parents[4]


def pictures(count: int) -> dict[str, bytes]:
    """Stand-ins of very different sizes; ids of which one begins with another."""
    rng = np.random.default_rng(count)
    return {f"SN_IMG_{index}": rng.bytes(int(rng.integers(1, 3000))) for index in range(count)}


def text(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def write_json(path: Path, content: dict[str, bytes]) -> Path:
    path.write_text(json.dumps({name: text(picture) for name, picture in content.items()}))
    return path


def assert_holds(store: ImageArchive, content: dict[str, bytes]) -> None:
    assert len(store) == len(content)
    assert list(store) == list(content)
    assert dict(store) == content
    assert all(name in store for name in content)
    for missing in ("", "SN_IMG_", "SN_IMG_00", "no such id", "ü", 5, None):
        assert missing not in store
    with pytest.raises(KeyError):
        store["no such id"]


@pytest.mark.parametrize("count", [0, 5000])
def test_json(tmp_path: Path, count: int) -> None:
    content = pictures(count)
    store = open_image_archive(write_json(tmp_path / "SN.json", content))
    assert_holds(store, content)
    assert_holds(pickle.loads(pickle.dumps(store)), content)
    assert_holds(open_image_archive(tmp_path / "SN.json"), content)


def test_of_an_id_that_comes_repeatedly_the_last_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "SN.json"
    rows = [("a", b"1"), ("b", b"2"), ("a", b"3"), ("c", b"4"), ("a", b"5"), ("b", b"6")]
    path.write_text("{" + ", ".join(f'"{name}": "{text(picture)}"' for name, picture in rows) + "}")
    store = open_image_archive(path)
    assert dict(store) == {"c": b"4", "a": b"5", "b": b"6"}
    assert "2 ids come more than once; the last is used: a; b" in caplog.text


def test_an_entry_that_is_no_picture_is_named_and_keeps_its_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "SD.json"
    bad = {
        "null": None,
        "number": 5,
        "list": [],
        "object": {},
        "empty": "",
        "words": "not base64!",
        "cut": "QUJDR",
    }
    path.write_text(json.dumps({"good": text(b"picture"), **bad, "last": text(b"other")}))
    store = open_image_archive(path)
    assert len(store) == 9
    for name in bad:
        assert (
            name in store
        )  # it is there, but damaged: a record that needs it is bad, not short of a picture
        with pytest.raises(ImageError, match=rf"SD\.json#{name}: it is "):
            store[name]
    assert "7 ids cannot be decoded: null: it is null, not base64 text; number: " in caplog.text
    assert (store["good"], store["last"]) == (b"picture", b"other")


DAMAGED = {
    "cut off in a picture": (
        '{"a": "QUJD", "b": "QU',
        r"byte 19 .*after 1 values.*the file ends inside the value",
    ),
    "a list": ('["QUJD"]', "expected one object of pictures"),
    "instructions": ('{"a": {"instruction": "x"}}', "holds no picture as base64 .a: it is null"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, kind: str) -> None:
    content, expected = DAMAGED[kind]
    path = tmp_path / "SN.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"^{path} .*{expected}") as caught:
        open_image_archive(path)
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_and_a_cache_that_is_gone_are_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_json(tmp_path / "SN.json", pictures(300))
    with monkeypatch.context() as patch:
        patch.setattr(image_archive, "_SETTINGS", ("max_page_count = 4",))
        with pytest.raises(
            DataError, match=r"SN\.json in the cache \(.*disk is full\); set --data_cache_path"
        ):
            open_image_archive(path)
    store = open_image_archive(path)
    shutil.rmtree(cache)
    with pytest.raises(DataError, match=r"cannot read .*\.sqlite .*remove that file and start again"):
        store["SN_IMG_1"]


def frame(content: dict[str, bytes]) -> pd.DataFrame:
    return pd.DataFrame({"id": list(content), "base64": list(map(text, content.values()))})


@pytest.mark.parametrize("is_direct", [True, False])
def test_parquet_is_read_where_it_is_unless_its_row_groups_are_large(
    tmp_path: Path, cache: Path, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_archive, "_DIRECT_AT_MOST", 100_000 if is_direct else 1000)
    content = pictures(300)
    path = tmp_path / "SN.parquet"
    frame(content).to_parquet(path, row_group_size=7)
    store = open_image_archive(path)
    assert_holds(store, content)
    assert_holds(pickle.loads(pickle.dumps(store)), content)
    kept = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    assert (kept < path.stat().st_size / 5) == is_direct


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    content = pictures(90)
    folder = tmp_path / "SN"
    folder.mkdir()
    table = frame(content)
    for shard in range(3):
        table[shard * 30 : shard * 30 + 30].to_parquet(folder / f"part-{shard}.parquet", row_group_size=20)
    assert_holds(open_image_archive(folder), content)
    table[:10].to_parquet(folder / "part-0.parquet")  # another release of one of them
    assert len(open_image_archive(folder)) == 70


def test_parquet_whose_ids_are_the_frame_s_index(tmp_path: Path) -> None:
    content = pictures(9)
    frame(content).set_index("id").rename_axis(None).to_parquet(tmp_path / "LA.parquet")
    assert_holds(open_image_archive(tmp_path / "LA.parquet"), content)


def test_parquet_as_datasets_writes_it(tmp_path: Path) -> None:
    content = pictures(9)
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    rows = [{"id": name, "image": {"bytes": each, "path": None}} for name, each in content.items()]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "CGD.parquet")
    assert_holds(open_image_archive(tmp_path / "CGD.parquet"), content)


def test_parquet_with_other_columns_is_named(tmp_path: Path) -> None:
    path = tmp_path / "SN.parquet"
    pq.write_table(pa.table({"name": ["a"], "base64": ["QUJD"]}), path)
    with pytest.raises(
        DataError, match=r"SN\.parquet has the columns name, base64; a column of ids \(id, image_id"
    ):
        open_image_archive(path)


class _Pictures(Dataset):
    """Pictures of a store by their numbers."""

    def __init__(self, store: ImageArchive) -> None:
        self.store, self.names = store, list(store)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> bytes:
        return self.store[self.names[index]]


@pytest.mark.parametrize("kind", ["json", "parquet"])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_share_an_opened_store(tmp_path: Path, kind: str, start: str) -> None:
    content = pictures(200)
    path = tmp_path / f"SN.{kind}"
    if kind == "json":
        write_json(path, content)
    else:
        frame(content).to_parquet(path, row_group_size=20)
    store = open_image_archive(path)
    assert store["SN_IMG_7"] == content["SN_IMG_7"]  # its files are open when the workers start
    loader = DataLoader(
        _Pictures(store), batch_size=None, num_workers=2, multiprocessing_context=start, timeout=120
    )
    assert list(loader) == list(content.values())


MEMORY = """
import random, sys
from pathlib import Path
from utils.data.readers.image_archive import open_image_archive

def peak():  # not ru_maxrss, which begins at the peak of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = peak()
store = open_image_archive(Path(sys.argv[1]))
names = list(store)
random.Random(0).shuffle(names)
assert sum(len(store[name]) for name in names) == int(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path, count, picture = tmp_path / "SN.json", 3000, np.random.default_rng(0).bytes(100_000)
    encoded = text(picture)
    with path.open("w") as file:  # 400 MB, 300 MB of pictures
        file.write("{")
        file.writelines(f'{", " if index else ""}"SN_{index}": "{encoded}"' for index in range(count))
        file.write("}")
    finished = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), str(count * len(picture))],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    megabytes = int(finished.stdout) / 1024
    assert megabytes < 250, f"{megabytes:.0f} MB for a file of {path.stat().st_size / 1e6:.0f} MB"
