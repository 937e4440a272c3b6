"""Files and folders that are either complete or not there, whatever happens while they are written.

Everything is written beside its final place under a name that starts with a dot, brought to the disk with
fsync, and then given its name in one step. A crash leaves the earlier version as it was, and at most a
leftover that `clear_leftovers` removes. One writer per target at a time is assumed.
"""

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.distributed import get_logger

logger = get_logger(__name__)

_PARTIAL = ".partial"  # being written
_PREVIOUS = ".previous"  # an earlier version on its way out


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to write into; leaving the block gives it the name `path`, replacing what had it.

    An exception inside the block leaves `path` as it was and removes what was written.
    """
    staging = begin_directory(path)
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    commit_directory(staging, path)


def staging_of(path: str | Path) -> Path:
    """Where the next version of `path` is written."""
    path = Path(path)
    return path.parent / f".{path.name}{_PARTIAL}"


def begin_directory(path: str | Path) -> Path:
    """Make the empty folder in which the next version of `path` is written; see `commit_directory`."""
    staging = staging_of(path)
    if staging.exists():  # left by a crash
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    return staging


def commit_directory(staging: Path, path: str | Path) -> None:
    """Bring the folder `staging` to the disk and give it the name `path` in one step."""
    path = Path(path)
    for folder, _, files in os.walk(staging):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    if not path.exists():
        os.rename(staging, path)
    elif _exchange(staging, path):
        shutil.rmtree(staging)  # holds the earlier version now
    else:
        # Two steps where names cannot be swapped; `clear_leftovers` undoes the first after a crash between.
        previous = path.parent / f".{path.name}{_PREVIOUS}"
        if previous.exists():
            shutil.rmtree(previous)
        os.rename(path, previous)
        os.rename(staging, path)
        shutil.rmtree(previous)
    sync(path.parent)


def remove_directory(path: str | Path) -> None:
    """Remove a folder so that a crash cannot leave a part of it under its name."""
    path = Path(path)
    going = staging_of(path)
    if going.exists():
        shutil.rmtree(going)
    os.rename(path, going)
    shutil.rmtree(going)


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) that appears complete under its name, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_of(path)
    try:
        with staging.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync(path.parent)


def clear_leftovers(folder: str | Path) -> list[str]:
    """Remove what crashes left half written in `folder`, undo an interrupted swap, and return the names."""
    folder = Path(folder)
    cleared = []
    for previous in folder.glob(f".*{_PREVIOUS}"):
        path = folder / previous.name[1 : -len(_PREVIOUS)]
        if path.exists():
            shutil.rmtree(previous)
        else:
            os.rename(previous, path)
    for partial in folder.glob(f".*{_PARTIAL}"):
        cleared.append(partial.name[1 : -len(_PARTIAL)])
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()
    return cleared


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot (not Linux, NFS)."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
    libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return libc.renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def sync(path: str | Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class BestEffort:
    """Lets writes of a file fail, and says so the first time: a full disk costs a run that file, not its end."""

    def __init__(self) -> None:
        self.is_due = False  # whether the last write failed
        self._warned = False

    @contextmanager
    def writing(self, path: str | Path) -> Iterator[None]:
        """Around a write of `path`."""
        try:
            yield
            self.is_due = False
        except OSError as error:
            self.is_due = True
            if not self._warned:
                reason = error.strerror or error
                logger.warning("%s could not be written (%s): training goes on without it", path, reason)
            self._warned = True
