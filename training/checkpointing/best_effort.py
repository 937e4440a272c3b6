"""What a run writes beside its checkpoints: a disk that is full costs it that for a while, and not the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.distributed import get_logger

logger = get_logger(__name__)


class BestEffort:
    """Lets writes of a file fail, and says so the first time."""

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
