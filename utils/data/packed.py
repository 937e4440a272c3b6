"""Packed rows: conversations of an epoch side by side, each as if it were alone."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.data.bad_data import BadRecord
from utils.data.encode import CutCount
from utils.data.grouping import Grouping
from utils.data.lengths import Lengths, measure
from utils.data.origins import Origin
from utils.data.packing import pack
from utils.data.tolerant import Row, TolerantDataset

_STREAM = 0x9AC  # what packing draws is not what others draw from the same seed and epoch


@dataclass(frozen=True, eq=False)
class PackedRow:
    """Conversations one after the other; S tokens, n images in order.

    `position_ids` restart with each conversation, which is how attention tells them apart.
    """

    input_ids: np.ndarray  # [S]
    labels: np.ndarray  # [S]
    mm_token_type_ids: np.ndarray  # [S]
    position_ids: np.ndarray  # [S]
    pixel_values: torch.Tensor | None  # [n, 3, H, W]
    origins: tuple[Origin, ...] = ()
    bad: tuple[BadRecord, ...] = ()


class PackedDataset(Dataset):
    """The conversations of a `TolerantDataset` in rows of at most `max_tokens` tokens and `max_images` images.

    Each epoch packs anew, a pure function of (seed, epoch) and the same in every process. An epoch may need a
    row more or less than another, but a training has to know its steps: so all have as many rows as the one
    with the most of those that were reserved, and in the rows left over nothing is learned.
    """

    def __init__(self, conversations: TolerantDataset, max_tokens: int, max_images: int, seed: int) -> None:
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

    def members(self, row: int) -> list[int]:
        """The conversations of a row, in order; none in a row that is left over."""
        return self._plan[row].tolist() if row < len(self._plan) else []

    @property
    def cut(self) -> CutCount:
        """What `max_seq_len` took away so far."""
        return self.conversations.cut

    @cached_property
    def nothing(self) -> PackedRow:
        """A short row in which nothing is learned."""
        return _joined([self.conversations.nothing])

    def __getitem__(self, row: int) -> PackedRow:
        """Raises what reading a conversation raises (`TolerantDataset`: next to nothing)."""
        if row >= len(self._plan):
            return self.nothing
        joined = _joined(
            [self._within(self.conversations[index], index) for index in self._plan[row].tolist()]
        )
        return joined if len(joined.input_ids) else replace(self.nothing, bad=joined.bad)

    def _planned(self, epoch: int) -> tuple[Lengths, Grouping]:
        lengths = measure(self.conversations.sketch(epoch))
        rng = np.random.default_rng([self.seed, epoch, _STREAM])
        return lengths, pack(lengths.tokens, lengths.images, self.max_tokens, self.max_images, rng)

    def _within(self, row: Row, index: int) -> Row:
        """A row that came out longer than was counted, cut at the end of a turn.

        So where a picture turned out damaged and its record was left out: turns that were cut come in again.
        """
        room = int(self._lengths.tokens[index])
        if len(row.input_ids) <= room:
            return row
        turns = int((row.turn_ends <= room).sum())
        if turns == 0:
            return Row(*(array[:0] for array in _arrays(row)), row.turn_ends[:0], None, bad=row.bad)
        end = int(row.turn_ends[turns - 1])
        images = int(row.mm_token_type_ids[:end].sum()) // self.conversations.tokens_per_image
        pixels = row.pixel_values[:images] if images else None
        arrays = (array[:end] for array in _arrays(row))
        return Row(*arrays, row.turn_ends[:turns], pixels, row.places, row.bad)


def _arrays(row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return row.input_ids, row.labels, row.mm_token_type_ids


def _joined(rows: list[Row]) -> PackedRow:
    ids, labels, kinds = (np.concatenate(arrays) for arrays in zip(*map(_arrays, rows), strict=True))
    pixels = [row.pixel_values for row in rows if row.pixel_values is not None]
    return PackedRow(
        input_ids=ids,
        labels=labels,
        mm_token_type_ids=kinds,
        position_ids=np.concatenate([np.arange(len(row.input_ids)) for row in rows]),
        pixel_values=torch.cat(pixels) if pixels else None,
        origins=tuple(origin for row in rows for origin in row.origins),
        bad=tuple(found for row in rows for found in row.bad),
    )
