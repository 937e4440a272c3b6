"""The batches of a process, for training and for evaluation: which conversation goes where.

Global batches do not depend on the number of processes. The conversations of an epoch are shuffled by (seed, epoch)
alone and dealt out in blocks: with batch size B on W processes, micro-step s of process r gets the block s * W + r.
So W processes with batch B see in each optimizer step the very conversations that one process sees with batch W * B,
or with W times the accumulation steps.

With lengths, conversations of like length come together, so that less of a batch is padding: what stays random
is which are together, and in which order the batches come.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainerCallback

from training.arguments.parser import VisualChatTrainingArguments
from utils.data import EncodedDataset, PackedDataset, Sample
from utils.data.workers import signal_safe

PADDING = -1
"""The index of a conversation without supervised tokens, which evens out the last blocks of an epoch."""


_STEPS_SORTED_TOGETHER = 50
"""transformers' measure: enough for like lengths, few enough for other companions in each epoch."""


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
        lengths: Callable[[int], np.ndarray] | None = None,
        accumulation: int = 1,
    ) -> None:
        """`seed` None keeps the order of the data; `drop_last` leaves out what fills no global batch.

        `lengths` gives those of all conversations in an epoch; then each optimizer step, of `accumulation`
        batches on every process, is of like lengths. Without a seed the longest come first.
        """
        self.length, self.batch_size, self.rank, self.world_size = length, batch_size, rank, world_size
        self.seed, self.drop_last = seed, drop_last
        self.lengths, self.accumulation = lengths, accumulation
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        block = self.batch_size * self.world_size
        return self.length // block if self.drop_last else -(-self.length // block)

    def __iter__(self) -> Iterator[list[int]]:
        block = self.batch_size * self.world_size
        order = self._order(block * self.accumulation)
        if self.world_size > 1:
            order = np.append(order, np.full(-self.length % block, PADDING))
        for step in range(len(self)):
            start = step * block + self.rank * self.batch_size
            yield order[start : start + self.batch_size].tolist()

    def _order(self, step: int) -> np.ndarray:
        """All indices, in the order of the epoch; `step` of them make an optimizer step."""
        rng = None if self.seed is None else np.random.default_rng((self.seed, self.epoch))
        if self.lengths is not None:
            return grouped_by_length(self.lengths(self.epoch), step, rng)
        order = np.arange(self.length)
        return order if rng is None else rng.permutation(order)


def grouped_by_length(lengths: np.ndarray, step: int, rng: np.random.Generator | None) -> np.ndarray:
    """An order of n conversations in which each `step` of them are of like length, the longest of them first.

    Shuffled conversations are sorted by length in portions of some steps, and the steps shuffled again. The
    step with the longest conversation comes first, where it shows at once whether memory suffices; what fills
    no step comes last. Without `rng` everything is sorted, nothing shuffled.

    Args:
        lengths: [n].
    """
    if rng is None:
        return np.argsort(-lengths, kind="stable")
    order = rng.permutation(len(lengths))
    full = len(order) // step * step
    portion = np.arange(full) // (step * _STEPS_SORTED_TOGETHER)
    by_length = np.lexsort((-lengths[order[:full]], portion))
    steps = rng.permutation(order[:full][by_length].reshape(-1, step))  # [steps, step]
    if len(steps):
        longest = int(lengths[steps].max(axis=1).argmax())
        steps[[0, longest]] = steps[[longest, 0]]
    rest = order[full:]
    return np.concatenate([steps.ravel(), rest[np.argsort(-lengths[rest], kind="stable")]])


class PaddedDataset(Dataset):
    """Samples for the collator, and at `PADDING` one with nothing to learn in it."""

    def __init__(self, encoded: EncodedDataset | PackedDataset) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to data that differ between epochs."""
        self.encoded.set_epoch(epoch)

    def __getitem__(self, index: int) -> Sample:
        return self.encoded.empty_sample if index == PADDING else self.encoded[index]


def training_loader(
    args: VisualChatTrainingArguments,
    collator: Any,
    dataset: EncodedDataset | PackedDataset,
    batch_size: int,
) -> DataLoader:
    """This process's training batches, shuffled unless `train_sampling_strategy` is sequential.

    Of packed rows every epoch of this training gets as many.
    """
    seed = None if args.train_sampling_strategy == "sequential" else args.seed

    def loader() -> DataLoader:
        return _loader(args, collator, dataset, batch_size, seed, args.dataloader_drop_last)

    if isinstance(dataset, PackedDataset):
        if args.max_steps <= 0:
            dataset.reserve(math.ceil(args.num_train_epochs))
        else:
            epochs = 1
            while (
                epochs * max(math.ceil(len(loader()) / args.gradient_accumulation_steps), 1) < args.max_steps
            ):
                epochs += 1
                dataset.reserve(epochs)
    return loader()


def evaluation_loader(
    args: VisualChatTrainingArguments, collator: Any, dataset: EncodedDataset | PackedDataset
) -> DataLoader:
    """This process's evaluation batches, in the order of the data."""
    return _loader(args, collator, dataset, args.eval_batch_size)


def _loader(
    args: VisualChatTrainingArguments,
    collator: Any,
    dataset: Any,
    batch_size: int,
    seed: int | None = None,
    drop_last: bool = False,
) -> DataLoader:
    by_length = args.train_sampling_strategy == "group_by_length"
    return DataLoader(
        PaddedDataset(dataset),
        batch_sampler=GlobalBatchSampler(
            len(dataset),
            batch_size,
            args.process_index,
            args.world_size,
            seed,
            drop_last,
            partial(_tokens, dataset) if by_length else None,
            args.gradient_accumulation_steps,
        ),
        **signal_safe(args.dataloader_num_workers, collator),  # never persistent: they would miss set_epoch
        pin_memory=args.dataloader_pin_memory,
        prefetch_factor=args.dataloader_prefetch_factor,
    )


class EpochSetter(TrainerCallback):
    """Tells sampler and data which epoch begins, also after a resume, when transformers wraps them away."""

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: DataLoader, **kwargs: Any
    ) -> None:
        epoch = int(state.epoch or 0)
        train_dataloader.batch_sampler.set_epoch(epoch)
        train_dataloader.dataset.set_epoch(epoch)


def _tokens(dataset: EncodedDataset, epoch: int) -> np.ndarray:
    from utils.data.batching.packing import measure  # here: few trainings need it

    return measure(dataset.without_pixels(epoch)).tokens
