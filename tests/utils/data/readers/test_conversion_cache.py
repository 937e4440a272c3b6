"""Data files are converted once, outside the data folder; an entry of the cache is complete or not there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.data.readers import annotations
from utils.data.readers.annotations import open_records
from utils.data.readers.image_archive import open_image_archive
from utils.data.spec import DataError

ROOT = Path(__file__).parents[4]
Entries = Callable[[str], list[Path]]


def write_list(path: Path, count: int) -> Path:
    path.write_text(json.dumps([{"id": index} for index in range(count)]))
    return path


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_is_read_again_and_the_old_entry_goes(
    tmp_path: Path, cache_entries: Entries, change: str
) -> None:
    path = write_list(tmp_path / "list.json", 2)
    assert open_records(path)[1] == {"id": 1}
    before = path.stat()
    path.write_text('[{"id": 0}, {"id": 7}]' + " " * (change == "size"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (change == "time")))
    assert open_records(path)[1] == {"id": 7}
    assert len(cache_entries("records")) == 1


def test_an_entry_that_lost_a_part_is_made_anew(tmp_path: Path, cache_entries: Entries) -> None:
    path = write_list(tmp_path / "list.json", 100)
    open_records(path)
    (entry,) = cache_entries("records")
    arrow = entry / "records.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-100])
    assert len(list(open_records(path))) == 100
    arrow.unlink()
    assert len(list(open_records(path))) == 100


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, cache_entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_list(tmp_path / "list.json", 2)
    read = annotations.read_json

    def read_and_change(*arguments: object, **options: object) -> object:
        yield from read(*arguments, **options)
        path.write_text("[{}]")

    monkeypatch.setattr(annotations, "read_json", read_and_change)
    with pytest.raises(DataError, match=r"list\.json changed while it was read; run again when its download"):
        open_records(path)
    assert cache_entries("records") == []


def test_a_cache_that_cannot_be_written_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_list(tmp_path / "list.json", 0)
    monkeypatch.setenv("VISUALCHAT_CACHE", str(path / "below"))
    with pytest.raises(
        DataError, match=r"list\.json in the cache .*set --data_cache_path \(or VISUALCHAT_CACHE\)"
    ):
        open_records(path)


def test_too_little_space_is_found_before_anything_is_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_list(tmp_path / "list.json", 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 5000))
    with pytest.raises(
        DataError, match=rf"takes about 14.2 kB in the cache {cache}, where 5 kB are free; set"
    ):
        open_records(path)


# Real processes from here on: each converts, or waits for the other to.

CONVERT = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from utils.data.readers.image_archive import open_image_archive
print("length", len(open_image_archive(Path(sys.argv[1]))))
"""


def start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONVERT, str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def write_pictures(path: Path, count: int) -> Path:
    text = "QUJD" * 10_000
    path.write_text("{" + ", ".join(f'"picture {index}": "{text}"' for index in range(count)) + "}")
    return path


def test_processes_that_start_together_convert_once(tmp_path: Path, cache_entries: Entries) -> None:
    path = write_pictures(tmp_path / "pictures.json", 1000)
    processes = [start(path) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("length 1000" in each for each in said)
    assert (
        sum(each.count("once") for each in said) == 1
    )  # one converted, the other waited for it or came later
    assert len(cache_entries("pictures")) == 1


def test_a_process_killed_while_it_converts_leaves_nothing_that_is_taken_for_an_entry(
    tmp_path: Path, cache: Path, cache_entries: Entries
) -> None:
    path = write_pictures(tmp_path / "pictures.json", 4000)
    process = start(path)
    deadline = time.monotonic() + 120
    while not list(cache.glob("pictures/*/.*.partial/pictures.sqlite")):  # it writes
        assert time.monotonic() < deadline
        assert process.poll() is None, "it was faster than this test"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert cache_entries("pictures") == []
    assert list(cache.glob("pictures/*/.*.partial")), "it had finished"
    assert len(open_image_archive(path)) == 4000  # the lock went with the process
    assert list(cache.glob("pictures/*/.*.partial")) == []
