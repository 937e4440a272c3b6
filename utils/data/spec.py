"""What a dataset is: one declarative row that says which files it has, where they come from and how to read
them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.conversation import Conversation, ConversationError


class DataError(ValueError):
    """Data that cannot be used as asked for; the message says what was found and what to do."""


@dataclass(frozen=True)
class Part:
    """A file or folder of a dataset: its path under the data folder, and where it is to be had."""

    path: str
    origin: str


@dataclass(frozen=True)
class RawRecord:
    """One record of an annotation file, as an adapter gets it.

    `source` names it in messages ("llava/detail_23k.json#17"); `image_folders` are the dataset's, in the
    order of its row.
    """

    fields: dict[str, Any]
    source: str
    image_folders: tuple[Path, ...]

    def error(self, message: str) -> ConversationError:
        """An error about this record, its place named first."""
        return ConversationError(f"{self.source}: {message}")


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset's row: the name that `--dataset_names` takes, its files, and the pure function that reads it.

    The adapter makes a conversation of one record, and raises `ConversationError` where the record is not
    what the published format says.
    """

    name: str
    annotations: tuple[Part, ...]
    images: tuple[Part, ...]
    adapter: Callable[[RawRecord], Conversation]

    def missing(self, data_path: Path) -> list[Part]:
        """The parts that are not under `data_path`."""
        return [part for part in (*self.annotations, *self.images) if not (data_path / part.path).exists()]
