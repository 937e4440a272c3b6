"""What a dataset is: one declarative row that says which files it has, where they come from and how to read
them.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

from utils.commands import UsageError
from utils.conversation import Conversation, ConversationError, Image

_Value = TypeVar("_Value", bound=int | float | str)

FORMAT_ERRORS = (ValueError, KeyError, TypeError, AttributeError, IndexError)
"""What reading a record's fields raises where they are not as published; `ConversationError` is among them."""


class DataError(UsageError):
    """Data that cannot be used as asked for; the message says what was found and what to do."""


@dataclass(frozen=True)
class Part:
    """A file or folder of a dataset: its path under the data folder, and where it is to be had (empty: nowhere).

    `key` is where an annotation file has its records, if it is not itself a list of them; `is_store` says
    that one file holds many pictures by their ids. `alternatives` are other paths under which later releases
    have the same: the first that is there is taken. `is_beside` means the folder in which that one is.
    """

    path: str
    origin: str
    key: str | None = None
    is_store: bool = False
    alternatives: tuple[str, ...] = ()
    is_beside: bool = False

    def locate(self, data_path: Path) -> Path | None:
        """Where it is, or None if it is missing."""
        found = next(
            (each for path in (self.path, *self.alternatives) if (each := data_path / path).exists()), None
        )
        return found.parent if found is not None and self.is_beside else found

    def wanted(self, data_path: Path) -> str:
        """What a message says of it where it is missing: where it is looked for, and where it is to be had."""
        if not self.origin:
            return f"{self.path} (a path given by you)"
        others = "".join(f" or {PurePath(path).name}" for path in self.alternatives)
        return f"{data_path / self.path}{others} (from {self.origin})"


@dataclass(frozen=True)
class StoredPicture:
    """One picture of a store, fetched when it is opened."""

    store: Mapping[str, bytes]
    name: str

    def read(self) -> bytes:
        """The encoded picture."""
        return self.store[self.name]


@dataclass(frozen=True)
class PictureStore:
    """Encoded pictures by their ids, and the path by which messages name the file that holds them."""

    path: str
    pictures: Mapping[str, bytes]


@dataclass(frozen=True)
class RawRecord:
    """One record of an annotation file, as an adapter gets it.

    `source` names it in messages ("llava/detail_23k.json#17"); `image_folders` are the dataset's folders and
    stores, in the order of its row; `file` counts the row's annotation files from 0. `rng` is seeded by the
    record's place and the epoch: what an adapter draws from it (one caption of several, the wording of a
    question) is the same on every process, and another in each epoch. `related` are the other records that
    its row's `arrange` puts into the same conversation.
    """

    fields: dict[str, Any]
    source: str
    image_folders: tuple[Path | PictureStore, ...]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    file: int = 0
    related: tuple["RawRecord", ...] = ()

    def image(self, name: str, folder: int = 0) -> Image:
        """The picture of that name in the dataset's `folder`-th image folder or store; it is not read here."""
        place = self.image_folders[folder]
        if isinstance(place, PictureStore):
            return Image(StoredPicture(place.pictures, name), name=f"{place.path}#{name}")
        return Image(place / name)

    def has_image(self, name: str, folder: int = 0) -> bool:
        """Whether that picture is there; no name that a record may hold is an error."""
        place = self.image_folders[folder]
        return name in place.pictures if isinstance(place, PictureStore) else os.path.isfile(place / name)

    def error(self, message: str) -> ConversationError:
        """An error about this record, its place named first."""
        return ConversationError(f"{self.source}: {message}")


@dataclass(frozen=True)
class LeftOut:
    """What an adapter returns for a record that is sound but that the published rule does not use.

    It is counted by its reason ("1x1 image"), apart from records that are bad.
    """

    reason: str


@dataclass(frozen=True, eq=False)
class Grouping:
    """Group g holds `members[borders[g]:borders[g + 1]]`."""

    members: np.ndarray  # [n] int64
    borders: np.ndarray  # [groups + 1] int64, from 0 to n

    def __len__(self) -> int:
        return len(self.borders) - 1

    def __getitem__(self, group: int) -> np.ndarray:
        return self.members[self.borders[group] : self.borders[group + 1]]


@dataclass(frozen=True, eq=False)
class Arrangement(Grouping):
    """Which records make which conversation, where that is not one record each.

    Records are counted through all annotation files of the row. Of those of conversation u the first `own[u]` belong to
    it alone; the others only lend something to it, and may do so to several.
    """

    own: np.ndarray  # [conversations] int64, at least 1

    @classmethod
    def of(cls, groups: Sequence[Sequence[int]], own: Sequence[int] | None = None) -> "Arrangement":
        """Conversations given as lists of records; without `own`, all of each belong to it alone."""
        sizes = np.array([len(group) for group in groups], dtype=np.int64)
        return cls(
            members=np.array([member for group in groups for member in group], dtype=np.int64),
            borders=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            own=sizes if own is None else np.array(own, dtype=np.int64),
        )


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset's row: the name that `--dataset_names` takes, its files, and the pure functions that read it.

    The adapter makes a conversation of one record, says why it is left out, or raises `ConversationError`
    where the record is not what the published format says. How many images are too many is not its business:
    that is one rule for all datasets. `arrange`, where there is one, reads the annotation files (a sequence
    of records for each) and says which records go together; it passes over what it cannot read, which the
    adapter then names. `image_names` tells the pictures that a record names, where its adapter leaves out
    those that an image store lacks: so they can be counted.
    """

    name: str
    annotations: tuple[Part, ...]
    images: tuple[Part, ...]
    adapter: Callable[[RawRecord], Conversation | LeftOut]
    arrange: Callable[[Sequence[Sequence[dict[str, Any]]]], Arrangement] | None = None
    image_names: Callable[[RawRecord], Sequence[str]] | None = None

    def missing(self, data_path: Path) -> list[Part]:
        """The parts that are not under `data_path`."""
        parts = [part for part in (*self.annotations, *self.images) if not part.is_beside]
        return [part for part in parts if part.locate(data_path) is None]


def one_for_each(values: _Value | Sequence[_Value], names: Sequence[str], option: str) -> list[_Value]:
    """One value for each name: a single one serves all. Raises `DataError` where the numbers differ."""
    listed = [values] if isinstance(values, str | int | float) else list(values)
    if len(listed) == 1:
        listed *= len(names)
    if len(listed) != len(names):
        raise DataError(
            f"{option} has {len(listed)} values for {len(names)} datasets; give one, or one for each"
        )
    return listed
