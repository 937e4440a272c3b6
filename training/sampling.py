"""Which conversation goes where: global batches that do not depend on the number of processes.

The conversations of an epoch are shuffled by (seed, epoch) alone and dealt out in blocks: with batch size B
on W processes, micro-step s of process r gets the block s * W + r. So W processes with batch B see in each
optimizer step the very conversations that one process sees with batch W * B, or with W times the accumulation
steps.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

PADDING = -1
"""The index of a conversation without supervised tokens, which evens out the last blocks of an epoch."""


class GlobalBatchSampler(Sampler[list[int]]):
    """The batches of one process: lists of indices into a `PaddedDataset` of `length` conversations.

    Every conversation comes exactly once an epoch. Where several processes share an epoch, all get the same
    number of batches of the same size; `PADDING` fills the gaps at its end.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        """`seed` None keeps the order of the data; `drop_last` leaves out what fills no global batch."""
        self.length, self.batch_size, self.rank, self.world_size = length, batch_size, rank, world_size
        self.seed, self.drop_last = seed, drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        block = self.batch_size * self.world_size
        return self.length // block if self.drop_last else -(-self.length // block)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.length)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        block = self.batch_size * self.world_size
        if self.world_size > 1:
            order = np.append(order, np.full(-self.length % block, PADDING))
        for step in range(len(self)):
            start = step * block + self.rank * self.batch_size
            yield order[start : start + self.batch_size].tolist()


class RowsAndNothing(Protocol):
    """Rows for the collator, and one in which nothing is learned (`TolerantDataset`)."""

    @property
    def nothing(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class PaddedDataset(Dataset):
    """A dataset of encoded conversations, and at `PADDING` a row with nothing to learn in it."""

    def __init__(self, encoded: RowsAndNothing) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to data that differ between epochs."""
        if hasattr(self.encoded, "set_epoch"):
            self.encoded.set_epoch(epoch)

    def __getitem__(self, index: int) -> Any:
        return self.encoded.nothing if index == PADDING else self.encoded[index]
