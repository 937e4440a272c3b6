"""Joining conversations at random, each exactly once: groups are index maps, made before anything is read.

The published recipe concatenates 1 to n samples of a dataset (https://arxiv.org/abs/2309.14327, section 4.1),
so that single-picture data teach dialogues over several pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.conversation import Conversation, Turn


@dataclass(frozen=True, eq=False)
class Grouping:
    """Group g holds `members[borders[g]:borders[g + 1]]`."""

    members: np.ndarray  # [n] int64, every index once
    borders: np.ndarray  # [groups + 1] int64, increasing, from 0 to n

    def __len__(self) -> int:
        return len(self.borders) - 1

    def __getitem__(self, group: int) -> np.ndarray:
        return self.members[self.borders[group] : self.borders[group + 1]]


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


def join(conversations: Sequence[Conversation]) -> Conversation:
    """One conversation of the turns of all, in order; the system text must be the same.

    Where a question speaks of its images by numbers that were written for it, they count on.
    """
    first, *others = conversations
    if not others:
        return first
    if any(other.system != first.system for other in others):
        raise first.error("it cannot be joined with conversations of another system text")
    turns: list[Turn] = []
    images = 0
    for conversation in conversations:
        turns += [turn.behind(images) for turn in conversation.turns]
        images += len(conversation.images)
    return Conversation(
        turns=tuple(turns),
        source=" + ".join(conversation.source for conversation in conversations),
        system=first.system,
    )
