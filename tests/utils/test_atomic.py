import contextlib

import pytest

from utils import atomic


def tree(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_directory_appears_complete_and_replaces(tmp_path):
    for text in ("one", "two"):
        with atomic.atomic_directory(tmp_path / "a") as folder:
            assert folder.parent == tmp_path and not list(folder.iterdir())
            (folder / "sub").mkdir()
            (folder / "sub" / "file").write_text(text)
        assert tree(tmp_path) == {"a/sub/file": text}


def test_error_leaves_the_old_folder(tmp_path):
    with atomic.atomic_directory(tmp_path / "a") as folder:
        (folder / "file").write_text("old")
    with pytest.raises(RuntimeError), atomic.atomic_directory(tmp_path / "a") as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert tree(tmp_path) == {"a/file": "old"}


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("call", ["rename", "fsync", "rmtree"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_crash_at_any_step_leaves_old_or_new(tmp_path, monkeypatch, swap, call, nth):
    """A stop at each rename, fsync and removal leaves one complete version after clearing up."""
    with atomic.atomic_directory(tmp_path / "a") as folder:
        (folder / "file").write_text("old")
    staging = atomic.begin_directory(tmp_path / "a")
    (staging / "file").write_text("new")
    if not swap:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    module = atomic.shutil if call == "rmtree" else atomic.os
    real, calls = getattr(module, call), []

    def crash(*args, **kwargs):
        calls.append(args)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, call, crash)
        with contextlib.suppress(KeyboardInterrupt):
            atomic.commit_directory(staging, tmp_path / "a")
    atomic.clear_leftovers(tmp_path)
    assert tree(tmp_path) in ({"a/file": "old"}, {"a/file": "new"})


def test_write_replaces_a_file(tmp_path):
    atomic.atomic_write(tmp_path / "sub" / "f.json", "one")
    atomic.atomic_write(tmp_path / "sub" / "f.json", b"two")
    assert tree(tmp_path) == {"sub/f.json": "two"}


def test_failed_write_keeps_the_file(tmp_path, monkeypatch):
    atomic.atomic_write(tmp_path / "f", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.atomic_write(tmp_path / "f", "new")
    assert tree(tmp_path) == {"f": "old"}
