"""What conversations an epoch has: which ones come, and which are joined; index maps, made before anything is read.

The published recipe concatenates 1 to n samples of a dataset (https://arxiv.org/abs/2309.14327, section 4.1),
so that single-image data teach dialogues over several images.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from utils.conversation import Conversation, ConversationError
from utils.data.bad_records import RecordPlace, SourceRecord
from utils.data.spec import Grouping, LeftOut

if TYPE_CHECKING:
    from utils.data.mixing.dataset import DatasetRecords
    from utils.data.mixing.index import DatasetIndex
    from utils.data.mixing.selection import RecordCounts


def group(
    image_counts: np.ndarray,
    most: int,
    max_images: int,
    rng: np.random.Generator,
    apart: np.ndarray | None = None,
) -> Grouping:
    """Shuffle indices 0..n-1 and cut them into groups of 1 to `most`, sizes drawn evenly.

    A group is closed early where the next member would bring it over `max_images`. No single member may be
    over.

    Args:
        image_counts: [n], the images of each index.
        apart: [n], indices with different values are never in one group; without it all may be.
    """
    assert not len(image_counts) or image_counts.max() <= max_images
    members = rng.permutation(len(image_counts))
    sort = np.zeros(len(members), dtype=np.int64) if apart is None else apart[members]
    together = np.argsort(sort, kind="stable")
    members, sort = members[together], sort[together]
    sizes = iter(rng.integers(1, most, size=len(members), endpoint=True).tolist())
    borders = [0]
    size, images = next(sizes, 0), 0
    breaks = np.append(False, sort[1:] != sort[:-1]).tolist()
    for position, (count, is_break) in enumerate(zip(image_counts[members].tolist(), breaks, strict=False)):
        if position - borders[-1] == size or images + count > max_images or is_break:
            borders.append(position)
            size, images = next(sizes), 0
        images += count
    if len(members):
        borders.append(len(members))
    return Grouping(members, np.array(borders, dtype=np.int64))


def refill(grouping: Grouping, kinds: np.ndarray, members: Sequence[np.ndarray]) -> Grouping:
    """Groups of the same number and sizes, in which other members take the places of their kind.

    Args:
        kinds: [n], the kind of the member at each position of `grouping`, counted from 0.
        members: of each kind as many as it has positions.
    """
    filled = np.empty_like(grouping.members)
    if len(members):
        filled[np.argsort(kinds, kind="stable")] = np.concatenate(members)
    return Grouping(filled, grouping.borders)


def visit(members: np.ndarray, count: int, epoch: int, seed: Sequence[int]) -> np.ndarray:
    """The `count` members that come in an epoch.

    Seeded permutations of all members follow each other without end, and each epoch takes the next `count`:
    so after any number of epochs every member has come equally often, give or take once, whatever `count`.
    """
    start, stop = epoch * count, (epoch + 1) * count
    first, last = start // len(members), -(-stop // len(members))
    passes = [np.random.default_rng([*seed, each]).permutation(members) for each in range(first, last)]
    offset = first * len(members)
    return np.concatenate(passes)[start - offset : stop - offset]


@dataclass(frozen=True, eq=False)
class MixtureIndex:
    """What is known of all n conversations that a mixture joins, without reading them again."""

    datasets: tuple[DatasetRecords, ...]
    indexes: tuple[DatasetIndex, ...]
    concatenate: tuple[int, ...]  # of each dataset
    weights: tuple[float, ...]  # of each dataset
    dataset_of: np.ndarray  # [n] number of the dataset
    index_of: np.ndarray  # [n] place in the dataset's index
    image_counts: np.ndarray  # [n]
    first_images: np.ndarray  # [n] uint64, equal where the first image is the same file
    systems: np.ndarray  # [n] uint64, equal where the system text is the same
    max_images: int
    seed: int
    record_counts: dict[str, RecordCounts]

    def read(self, number: int, epoch: int) -> Conversation:
        """Read conversation `number`, with what its adapter draws in `epoch`."""
        records, index = self.datasets[self.dataset_of[number]], int(self.index_of[number])
        members = self._arranged(number)
        adapted = records.adapt(records.record(members, records.rng(self.seed, epoch, index)))
        if isinstance(adapted, LeftOut):  # an image file that was there when the index was made
            raise ConversationError(
                f"{records.place(members[0])}: it cannot be used any more: {adapted.reason}"
            )
        return adapted

    def place(self, number: int) -> RecordPlace:
        """Where the first record of conversation `number` is."""
        return self.datasets[self.dataset_of[number]].place(self._arranged(number)[0])

    def record(self, number: int, epoch: int) -> SourceRecord:
        """The records that conversation `number` is made of, as one."""
        own = self.indexes[self.dataset_of[number]].arrangement.own[self.index_of[number]]
        return SourceRecord(self.place(number), partial(self.read, number, epoch), int(own))

    def _arranged(self, number: int) -> list[int]:
        return self.indexes[self.dataset_of[number]].arrangement[int(self.index_of[number])].tolist()


@dataclass(frozen=True, eq=False)
class _Kind:
    """Conversations that may take each other's places in groups, and how many of them come in an epoch."""

    members: np.ndarray  # [m], numbers in the mixture's index
    size: int
    seed: tuple[int, ...]


class DatasetShare:
    """What one dataset contributes to a mixture: which of its conversations come in an epoch, and their groups.

    The number of groups and their sizes are the same in all epochs, so a training knows its steps: groups are
    made once, of kinds of conversations, and each epoch fills other conversations of these kinds in.
    """

    def __init__(self, known: MixtureIndex, number: int, chosen: np.ndarray, weight: float) -> None:
        """`chosen` are those of the index's conversations that the mixture has, of all datasets."""
        mine = chosen[known.dataset_of[chosen] == number]
        # By name, so that a dataset's groups do not depend on which others are there.
        seed = (known.seed, zlib.crc32(known.datasets[number].spec.name.encode()))
        # A kind is of one system text and one number of images; others could not be joined in its place.
        traits = np.stack([known.systems[mine], known.image_counts[mine].astype(np.uint64)], axis=1)
        kinds, kind_of = np.unique(traits, axis=0, return_inverse=True)  # [k, 2], [mine]
        by_kind = _split(mine, kind_of.reshape(-1), len(kinds))
        sizes = [round(weight * len(each)) for each in by_kind]

        _, system_of = np.unique(kinds[:, 0], return_inverse=True)
        self._kinds = [
            _Kind(members, size, (*seed, *map(int, kind)))
            for members, size, kind in zip(by_kind, sizes, kinds, strict=True)
            if size
        ]
        images = [
            np.full(size, count) for size, count in zip(sizes, kinds[:, 1].astype(np.int64), strict=True)
        ]
        apart = [np.full(size, system) for size, system in zip(sizes, system_of, strict=True)]
        # Of a kind so rare that its weight leaves less than one an epoch, each is taken in turn with those of
        # the other such kinds, and stays alone: so none is lost, and none comes too often.
        rare = [members for members, size in zip(by_kind, sizes, strict=True) if not size]
        if rare:
            members = np.concatenate(rare)
            size = max(1, round(weight * len(members)))
            self._kinds.append(_Kind(members, size, (*seed, len(kinds))))
            images.append(np.zeros(size, dtype=np.int64))
            apart.append(len(kinds) + np.arange(size))

        slots = np.repeat(np.arange(len(self._kinds)), [kind.size for kind in self._kinds])
        self._shape = group(
            _joined(images),
            known.concatenate[number],
            known.max_images,
            np.random.default_rng(seed),
            _joined(apart),
        )
        self._kind_at = slots[self._shape.members]

    def groups(self, epoch: int) -> Grouping:
        """The groups of an epoch, of numbers in the mixture's index."""
        members = [visit(kind.members, kind.size, epoch, kind.seed) for kind in self._kinds]
        return refill(self._shape, self._kind_at, members)


def _split(values: np.ndarray, part_of: np.ndarray, parts: int) -> list[np.ndarray]:
    """The values of each part, in their order."""
    borders = np.cumsum(np.bincount(part_of, minlength=parts))
    return np.split(values[np.argsort(part_of, kind="stable")], borders)[:-1]


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=np.int64), *arrays])
