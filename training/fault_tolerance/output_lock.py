"""One job at a time in an output folder: two would clear up each other's half-written checkpoints."""

import errno
import fcntl
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


@contextmanager
def reserved(folder: str | Path) -> Iterator[None]:
    """Hold a folder, made where it is missing, for all processes of this job within the block.

    The kernel holds it, so nothing stays locked after kill -9, and on network file systems that pass locks on it is
    good between machines. Raises `OutputInUseError` where another job has it.
    """
    held: list[IO[str]] = []

    def take() -> None:
        writable_folder(Path(folder), "--output_dir")
        held.append(_locked(Path(folder)))

    decided_by_main(take)
    try:
        yield
    finally:
        for lock in held:
            lock.close()


def _locked(folder: Path) -> IO[str]:
    """The folder's lock file, held until it is closed; it names the holder."""
    file = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        # Of the process, unlike flock(2): a loader's worker that outlives it does not keep it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read() or "another process"
        raise OutputInUseError(
            f"{folder} is being written by {holder}: give another --output_dir, or end that job"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        logger.warning("%s cannot be locked (%s): start no second job there", folder, error.strerror)
    file.truncate(0)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {started}")
    file.flush()
    return file
