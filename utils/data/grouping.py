"""Joining conversations at random, each exactly once: groups are index maps, made before anything is read.

The published recipe concatenates 1 to n samples of a dataset (https://arxiv.org/abs/2309.14327, section 4.1),
so that single-picture data teach dialogues over several pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.conversation import Conversation


@dataclass(frozen=True, eq=False)
class Grouping:
    """Group g holds `members[borders[g]:borders[g + 1]]`."""

    members: np.ndarray  # [n] int64, every index once
    borders: np.ndarray  # [groups + 1] int64, increasing, from 0 to n

    def __len__(self) -> int:
        return len(self.borders) - 1

    def __getitem__(self, group: int) -> np.ndarray:
        return self.members[self.borders[group] : self.borders[group + 1]]


def group(image_counts: np.ndarray, most: int, max_images: int, rng: np.random.Generator) -> Grouping:
    """Shuffle indices 0..n-1 and cut them into groups of 1 to `most`, sizes drawn evenly.

    A group is closed early where the next member would bring it over `max_images`. No single member may be
    over.

    Args:
        image_counts: [n], the images of each index.
    """
    assert not len(image_counts) or image_counts.max() <= max_images
    members = rng.permutation(len(image_counts))
    sizes = iter(rng.integers(1, most, size=len(members), endpoint=True).tolist())
    borders = [0]
    size, images = next(sizes, 0), 0
    for position, count in enumerate(image_counts[members].tolist()):
        if position - borders[-1] == size or images + count > max_images:
            borders.append(position)
            size, images = next(sizes), 0
        images += count
    if len(members):
        borders.append(len(members))
    return Grouping(members, np.array(borders, dtype=np.int64))


def regroup(grouping: Grouping, kinds: np.ndarray, rng: np.random.Generator) -> Grouping:
    """Exchange members at random among those of the same kind: other groups, of the same number and sizes.

    Args:
        kinds: the kind of each index, for instance its dataset and its number of images.
    """
    kind_at = kinds[grouping.members]  # [n]
    shuffled = rng.permutation(len(kind_at))
    members = np.empty_like(grouping.members)
    members[np.argsort(kind_at, kind="stable")] = grouping.members[
        shuffled[np.argsort(kind_at[shuffled], kind="stable")]
    ]
    return Grouping(members, grouping.borders)


def join(conversations: Sequence[Conversation]) -> Conversation:
    """One conversation of the turns of all, in order; the system text must be the same."""
    first, *others = conversations
    if not others:
        return first
    if any(other.system != first.system for other in others):
        raise first.error("it cannot be joined with conversations of another system text")
    return Conversation(
        turns=tuple(turn for conversation in conversations for turn in conversation.turns),
        source=" + ".join(conversation.source for conversation in conversations),
        system=first.system,
    )
