"""What a dataset is: one declarative row that says which files it has, where they come from and how to read
them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.conversation import Conversation, ConversationError, Image


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
    order of its row; `file` counts the row's annotation files from 0. `rng` is seeded by the record's place
    and the epoch: what an adapter draws from it (one caption of several, the wording of a question) is the
    same on every process, and another in each epoch.
    """

    fields: dict[str, Any]
    source: str
    image_folders: tuple[Path, ...]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    file: int = 0

    def image(self, name: str, folder: int = 0) -> Image:
        """The picture of that name in the dataset's `folder`-th image folder; it is not read here."""
        return Image(self.image_folders[folder] / name)

    def has_image(self, name: str, folder: int = 0) -> bool:
        """Whether that picture is there."""
        return (self.image_folders[folder] / name).is_file()

    def error(self, message: str) -> ConversationError:
        """An error about this record, its place named first."""
        return ConversationError(f"{self.source}: {message}")


@dataclass(frozen=True)
class LeftOut:
    """What an adapter returns for a record that is sound but that the published rule does not use.

    It is counted by its reason ("1x1 image"), apart from records that are bad.
    """

    reason: str


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset's row: the name that `--dataset_names` takes, its files, and the pure function that reads it.

    The adapter makes a conversation of one record, says why it is left out, or raises `ConversationError`
    where the record is not what the published format says.
    """

    name: str
    annotations: tuple[Part, ...]
    images: tuple[Part, ...]
    adapter: Callable[[RawRecord], Conversation | LeftOut]

    def missing(self, data_path: Path) -> list[Part]:
        """The parts that are not under `data_path`."""
        return [part for part in (*self.annotations, *self.images) if not (data_path / part.path).exists()]
