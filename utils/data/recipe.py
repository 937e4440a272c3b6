"""What a mixture is made of, and what comes of it in an epoch: arrays alone, made before anything is read."""

import zlib
from dataclasses import dataclass

import numpy as np

from utils.conversation import Conversation, ConversationError
from utils.data.grouping import Grouping, group, refill, visit
from utils.data.record_set import RecordSet
from utils.data.selection import Account
from utils.data.spec import LeftOut
from utils.data.survey import Survey


@dataclass(frozen=True, eq=False)
class Recipe:
    """What is known of all n conversations that a mixture joins, without reading them again."""

    sets: tuple[RecordSet, ...]
    surveys: tuple[Survey, ...]
    concatenate: tuple[int, ...]  # of each set
    weights: tuple[float, ...]  # of each set
    set_of: np.ndarray  # [n] number of the set
    index_of: np.ndarray  # [n] place in the set's survey
    image_counts: np.ndarray  # [n]
    pictures: np.ndarray  # [n] uint64, equal where the first picture is the same file
    systems: np.ndarray  # [n] uint64, equal where the system text is the same
    max_images: int
    seed: int
    accounts: dict[str, Account]

    def read(self, number: int, epoch: int) -> Conversation:
        """Read conversation `number`, with what its adapter draws in `epoch`."""
        records, index = self.sets[self.set_of[number]], int(self.index_of[number])
        members = self.surveys[self.set_of[number]].arrangement[index].tolist()
        adapted = records.adapt(records.record(members, records.rng(self.seed, epoch, index)))
        if isinstance(adapted, LeftOut):  # an image file that was there when the survey was made
            raise ConversationError(
                f"{records.place(members[0])}: it cannot be used any more: {adapted.reason}"
            )
        return adapted


@dataclass(frozen=True, eq=False)
class _Kind:
    """Conversations that may take each other's places in groups, and how many of them come in an epoch."""

    members: np.ndarray  # [m], numbers in the recipe
    size: int
    seed: tuple[int, ...]


class Share:
    """What one set contributes to a mixture: which of its conversations come in an epoch, and their groups.

    The number of groups and their sizes are the same in all epochs, so a training knows its steps: groups are
    made once, of kinds of conversations, and each epoch fills other conversations of these kinds in.
    """

    def __init__(self, recipe: Recipe, number: int, chosen: np.ndarray, weight: float) -> None:
        """`chosen` are those of the recipe's conversations that the mixture has, of all sets."""
        mine = chosen[recipe.set_of[chosen] == number]
        # By name, so that a set's groups do not depend on which others are there.
        seed = (recipe.seed, zlib.crc32(recipe.sets[number].spec.name.encode()))
        # A kind is of one system text and one number of images; others could not be joined in its place.
        traits = np.stack([recipe.systems[mine], recipe.image_counts[mine].astype(np.uint64)], axis=1)
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
            recipe.concatenate[number],
            recipe.max_images,
            np.random.default_rng(seed),
            _joined(apart),
        )
        self._kind_at = slots[self._shape.members]

    def groups(self, epoch: int) -> Grouping:
        """The groups of an epoch, of numbers in the recipe."""
        members = [visit(kind.members, kind.size, epoch, kind.seed) for kind in self._kinds]
        return refill(self._shape, self._kind_at, members)


def _split(values: np.ndarray, part_of: np.ndarray, parts: int) -> list[np.ndarray]:
    """The values of each part, in their order."""
    borders = np.cumsum(np.bincount(part_of, minlength=parts))
    return np.split(values[np.argsort(part_of, kind="stable")], borders)[:-1]


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=np.int64), *arrays])
