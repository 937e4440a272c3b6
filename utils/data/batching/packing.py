"""Packing: whole conversations side by side in rows of a fixed length, so that a batch holds next to no padding.

Rows are index maps made from lengths alone, before anything is read: a pure function of the lengths, the seed
and the epoch, the same in every process. In a row each conversation is as if it were alone.

The lengths of an epoch, which group_by_length needs too, are counted once, by all cores, and kept in the cache: that is
rendering and tokenising without reading an image, some thousand conversations a second on a core.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from utils.data.batching.batch import Sample, joined
from utils.data.batching.encode import CutCount, EncodedDataset
from utils.data.readers.conversion_cache import cache_folder, keep
from utils.data.spec import DataError, Grouping
from utils.data.workers import parallel_map

_FORMAT = 2  # raise it when other lengths would be counted, and old entries are passed over
_FILE = "lengths.npz"


@dataclass(frozen=True, eq=False)
class Lengths:
    """Of all n conversations, as they are after whole turns were cut to fit."""

    tokens: np.ndarray  # [n] int64
    images: np.ndarray  # [n] int64


def measure(dataset: EncodedDataset) -> Lengths:
    """The lengths of all conversations, from the cache, where they are put first.

    Processes of a machine that start together wait for the one that counts. Without a fingerprint nothing is
    kept. Raises `DataError` for a cache folder that cannot be written.
    """
    if dataset.fingerprint is None:
        return _count(dataset)
    entry = cache_folder() / "lengths" / dataset.fingerprint / f"{_FORMAT}"

    def write(folder: Path) -> None:
        lengths = _count(dataset)
        np.savez(
            folder / _FILE, tokens=lengths.tokens.astype(np.int32), images=lengths.images.astype(np.int32)
        )

    keep(entry, "the lengths of conversations", "counts the tokens of conversations", write)
    with np.load(entry / _FILE) as arrays:
        return Lengths(arrays["tokens"].astype(np.int64), arrays["images"].astype(np.int64))


def _count(dataset: EncodedDataset) -> Lengths:
    sizes = np.array(list(parallel_map(_Sizes(dataset), "counting tokens (once)")), dtype=np.int64).reshape(
        -1, 2
    )
    return Lengths(sizes[:, 0], sizes[:, 1])


class _Sizes(Dataset):
    """Tokens and images of one conversation."""

    def __init__(self, dataset: EncodedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, int]:
        kinds = self.dataset[index].mm_token_type_ids
        return len(kinds), int(kinds.sum()) // self.dataset.tokens_per_image


_STREAM = 0x9AC  # what packing draws is not what others draw from the same seed and epoch

_WINDOW = 1 << 15
"""Conversations that are packed together: enough to fill rows, few enough to mix at random between epochs."""


class PackedDataset(Dataset):
    """The samples of an `EncodedDataset` in rows of at most `max_tokens` tokens and `max_images` images.

    Each epoch packs anew, a pure function of (seed, epoch) and the same in every process. An epoch may need a
    row more or less than another, but a training has to know its steps: so all have as many rows as the one
    with the most of those that were reserved, and in the rows left over nothing is learned.
    """

    def __init__(self, conversations: EncodedDataset, max_tokens: int, max_images: int, seed: int) -> None:
        self.conversations = conversations
        self.max_tokens, self.max_images, self.seed = max_tokens, max_images, seed
        self._rows = self._reserved = 0
        self.reserve(1)
        self.set_epoch(0)

    def __len__(self) -> int:
        return self._rows

    def reserve(self, epochs: int) -> None:
        """Have rows enough for each of the first epochs; their lengths are counted where they are not known."""
        for epoch in range(self._reserved, epochs):
            self._rows = max(self._rows, len(self._planned(epoch)[1]))
        self._reserved = max(self._reserved, epochs)

    def set_epoch(self, epoch: int) -> None:
        """Turn to the rows of an epoch."""
        self.conversations.set_epoch(epoch)
        self._lengths, self._plan = self._planned(epoch)
        assert len(self._plan) <= self._rows, f"epoch {epoch} was not reserved"

    @property
    def fill(self) -> float:
        """The share of the tokens in this epoch's rows that are no padding."""
        return float(self._lengths.tokens.sum()) / max(len(self._plan) * self.max_tokens, 1)

    @property
    def mean_images(self) -> float:
        """Images of a row on average, tiles included."""
        return float(self._lengths.images.sum()) / max(len(self._plan), 1)

    def members(self, row: int) -> list[int]:
        """The conversations of a row, in order; none in a row that is left over."""
        return self._plan[row].tolist() if row < len(self._plan) else []

    @property
    def cut(self) -> CutCount:
        """What `max_seq_len` took away so far."""
        return self.conversations.cut

    @cached_property
    def empty_sample(self) -> Sample:
        """A short row in which nothing is learned."""
        return _packed([self.conversations.empty_sample])

    def __getitem__(self, row: int) -> Sample:
        """Raises what reading a conversation raises."""
        if row >= len(self._plan):
            return self.empty_sample
        packed = _packed([self._within(index) for index in self._plan[row].tolist()])
        return packed if len(packed.input_ids) else replace(self.empty_sample, bad=packed.bad)

    def _planned(self, epoch: int) -> tuple[Lengths, Grouping]:
        lengths = measure(self.conversations.without_pixels(epoch))
        rng = np.random.default_rng([self.seed, epoch, _STREAM])
        return lengths, pack(lengths.tokens, lengths.images, self.max_tokens, self.max_images, rng)

    def _within(self, index: int) -> Sample:
        """A conversation; cut at the end of a turn where it came out longer than was counted.

        So where an image turned out damaged and its record was left out: turns that were cut come in again.
        """
        sample, room = self.conversations[index], int(self._lengths.tokens[index])
        if len(sample.input_ids) <= room:
            return sample
        turns = int((sample.turn_ends <= room).sum())
        return sample.first_turns(turns, self.conversations.tokens_per_image)


def _packed(samples: Sequence[Sample]) -> Sample:
    begins = np.cumsum([0, *(len(sample.input_ids) for sample in samples)])[:-1]
    return Sample(
        input_ids=np.concatenate([sample.input_ids for sample in samples]),
        labels=np.concatenate([sample.labels for sample in samples]),
        mm_token_type_ids=np.concatenate([sample.mm_token_type_ids for sample in samples]),
        turn_ends=np.concatenate([sample.turn_ends + at for sample, at in zip(samples, begins, strict=True)]),
        pixel_values=joined([sample.pixel_values for sample in samples]),
        image_features=joined([sample.image_features for sample in samples]),
        position_ids=np.concatenate([np.arange(len(sample.input_ids)) for sample in samples]),
        origins=tuple(origin for sample in samples for origin in sample.origins),
        bad=tuple(found for sample in samples for found in sample.bad),
    )


def pack(
    tokens: np.ndarray, images: np.ndarray, max_tokens: int, max_images: int, rng: np.random.Generator
) -> Grouping:
    """Which of n conversations share which row: each in exactly one, no row over either budget.

    The conversations are shuffled and cut into windows. In each, the largest comes first, and goes where it
    leaves the least room for tokens (best fit decreasing); a new row begins where it fits nowhere.

    Args:
        tokens, images: [n], of each conversation. max_tokens, max_images: of a row.

    Raises `DataError` where a conversation alone is over a budget.
    """
    _check(tokens, max_tokens, "tokens", "--max_seq_len")
    _check(images, max_images, "images", "--max_images_per_row")
    order = rng.permutation(len(tokens))
    row_of = np.empty(len(tokens), dtype=np.int64)
    rows = 0
    for start in range(0, len(order), _WINDOW):
        window = order[start : start + _WINDOW]
        size = np.maximum(tokens[window] / max_tokens, images[window] / max_images)
        window = window[np.argsort(-size, kind="stable")]
        placed, used = _best_fit(tokens[window].tolist(), images[window].tolist(), max_tokens, max_images)
        row_of[window] = np.array(placed) + rows
        rows += used
    members = np.argsort(row_of, kind="stable")
    borders = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))])
    return Grouping(members, borders)


def _check(sizes: np.ndarray, limit: int, kind: str, option: str) -> None:
    if len(sizes) and sizes.max() > limit:
        raise DataError(
            f"conversation {int(sizes.argmax())} has {sizes.max()} {kind}, more than a row may hold; raise"
            f" {option} {limit}"
        )


def _best_fit(
    tokens: Sequence[int], images: Sequence[int], max_tokens: int, max_images: int
) -> tuple[list[int], int]:
    """The row of each conversation, placed one after the other, and the number of rows.

    Rows with the same room are on one stack. For each number of images that a row has left, bit t of `rooms`
    says whether there is a row with exactly t tokens left: so the tightest is the lowest bit that is high
    enough, found in a few operations on a long integer.
    """
    rooms = [0] * (max_images + 1)
    stacks: dict[tuple[int, int], list[int]] = {}
    placed, rows = [], 0
    for length, pictures in zip(tokens, images, strict=True):
        room, spare = max_tokens + 1, max_images
        for left in range(pictures, max_images + 1):
            fitting = rooms[left] >> length
            if fitting:
                tightest = length + (fitting & -fitting).bit_length() - 1
                if tightest < room:
                    room, spare = tightest, left
                    if tightest == length:
                        break
        if room > max_tokens:
            row, rows, room = rows, rows + 1, max_tokens
        else:
            stack = stacks[spare, room]
            row = stack.pop()
            if not stack:
                rooms[spare] ^= 1 << room
        placed.append(row)
        room, spare = room - length, spare - pictures
        if room:
            stack = stacks.setdefault((spare, room), [])
            if not stack:
                rooms[spare] |= 1 << room
            stack.append(row)
    return placed, rows
