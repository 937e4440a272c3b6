"""Kept images at the places where they stand in dialogues."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import gcd

import torch

from utils.model.image_states import ImageStates, ImageStatesMaker


@dataclass(frozen=True, eq=False)
class Placed:
    """Rotated keys and values of the images of B rows: a tensor [G, Hkv, I, D] for each layer, or none at all.

    Each of the G serves B / G rows that follow one another. Rows of fewer than I image tokens are filled up
    behind. lengths: how many each of the B rows has.
    """

    keys: tuple[torch.Tensor, ...] = ()
    values: tuple[torch.Tensor, ...] = ()
    lengths: tuple[int, ...] = ()

    def cut(self, length: int) -> "Placed":
        """The first `length` image tokens."""
        if not length:
            return Placed()
        keys, values = (tuple(each[:, :, :length] for each in layers) for layers in (self.keys, self.values))
        return Placed(keys, values, tuple(min(each, length) for each in self.lengths))

    def followed_by(self, other: "Placed") -> "Placed":
        """More images behind these, of one row."""
        if not self.keys or not other.keys:
            return self if self.keys else other
        keys, values = (
            tuple(torch.cat(pair, dim=2) for pair in zip(first, second, strict=True))
            for first, second in [(self.keys, other.keys), (self.values, other.values)]
        )
        return Placed(keys, values, (self.lengths[0] + other.lengths[0],))


@torch.inference_mode()
def place(
    maker: ImageStatesMaker, rows: Sequence[Sequence[ImageStates]], starts: Sequence[Sequence[int]]
) -> Placed:
    """Put images where they start; neighbours that have the same images at the same places share them."""
    lengths = tuple(sum(image.keys[0].shape[1] for image in row) for row in rows)
    if not max(lengths, default=0):
        return Placed()
    alike = groupby((list(map(id, row)), list(begun)) for row, begun in zip(rows, starts, strict=True))
    shared = gcd(*(len(list(run)) for _, run in alike))  # attention wants as many rows for each
    rows, starts = rows[::shared], starts[::shared]
    places = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    for number, (row, begun) in enumerate(zip(rows, starts, strict=True)):
        if row:
            spans = [
                torch.arange(start, start + image.keys[0].shape[1])
                for start, image in zip(begun, row, strict=True)
            ]
            places[number, : lengths[number * shared]] = torch.cat(spans)
    rotations = maker.rotations(places.to(maker.device))
    keys, values = [], []
    layers = len(next(row for row in rows if row)[0].keys)
    for layer in range(layers):
        keys.append(maker.rotate(_beside([[image.keys[layer] for image in row] for row in rows]), rotations))
        values.append(_beside([[image.values[layer] for image in row] for row in rows]))
    return Placed(tuple(keys), tuple(values), lengths)


def _beside(rows: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """Images [Hkv, S, D] of each row one behind the other, rows filled up with zeros: [B, Hkv, I, D]."""
    if len(rows) == 1:
        return torch.cat(list(rows[0]), dim=1)[None]
    lengths = [sum(image.shape[1] for image in row) for row in rows]
    like = next(image for row in rows for image in row)
    filled = like.new_zeros(len(rows), like.shape[0], max(lengths), like.shape[2])
    for number, row in enumerate(rows):
        if row:
            filled[number, :, : lengths[number]] = torch.cat(list(row), dim=1)
    return filled
