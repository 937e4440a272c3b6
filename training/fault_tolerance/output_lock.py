"""One job at a time in an output folder: two would clear up each other's half-written checkpoints."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from training.exit_codes import AgreedError
from utils.commands import writable_folder
from utils.distributed import decided_by_main, get_logger

logger = get_logger(__name__)

LOCK = ".lock"


class OutputInUseError(AgreedError):
    """Another job is writing there; the message is one line and names it."""


class OutputLock:
    """The right to write in a folder, held until `release` or the end of the process, however it ends.

    The kernel holds it, so nothing stays locked after kill -9, and on network file systems that pass locks on
    it is good between machines.
    """

    def __init__(self, folder: str | Path) -> None:
        """Take the right; raises `OutputInUseError` where another process has it."""
        path = Path(folder) / LOCK
        self._file: IO[str] = path.open("a+", encoding="utf-8")
        try:
            # Of the process, unlike flock(2): a loader's worker that outlives it does not keep it.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise OutputInUseError(
                f"{folder} is being written by {self._holder()}: give another --output_dir, or end that job"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            logger.warning("%s cannot be locked (%s): start no second job there", folder, error.strerror)
        self._file.truncate(0)
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "started": started}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Let others write there."""
        self._file.close()

    def _holder(self) -> str:
        self._file.seek(0)
        try:
            holder = json.load(self._file)
            return f"process {holder['process']} on {holder['host']} since {holder['started']}"
        except (ValueError, KeyError, TypeError):
            return "another process"


@contextmanager
def reserved(folder: str | Path) -> Iterator[None]:
    """Hold a folder, made where it is missing, for all processes of this job within the block."""
    held: list[OutputLock] = []

    def take() -> None:
        writable_folder(Path(folder), "--output_dir")
        held.append(OutputLock(folder))

    decided_by_main(take)
    try:
        yield
    finally:
        for lock in held:
            lock.release()
