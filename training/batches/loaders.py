"""The batches of a process, for training and for evaluation."""

import math
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback

from training.arguments.parser import VisualChatTrainingArguments
from training.batches.sampler import GlobalBatchSampler, PaddedDataset
from utils.data import EncodedDataset, PackedDataset
from utils.data.batching.lengths import measure
from utils.data.workers import signal_safe


class Loaders:
    """Makes the loaders of this process; which conversations are in which batch is the sampler's affair."""

    def __init__(self, args: VisualChatTrainingArguments, collator: Any) -> None:
        self.args = args
        self.collator = collator

    def training(self, dataset: EncodedDataset | PackedDataset, batch_size: int) -> DataLoader:
        """Training batches, shuffled unless `train_sampling_strategy` is sequential.

        Of packed rows every epoch of this training gets as many.
        """
        seed = None if self.args.train_sampling_strategy == "sequential" else self.args.seed

        def loader() -> DataLoader:
            return self._loader(dataset, batch_size, seed, self.args.dataloader_drop_last)

        if isinstance(dataset, PackedDataset):
            if self.args.max_steps <= 0:
                dataset.reserve(math.ceil(self.args.num_train_epochs))
            else:
                epochs = 1
                while epochs * max(self._steps(loader()), 1) < self.args.max_steps:
                    epochs += 1
                    dataset.reserve(epochs)
        return loader()

    def evaluation(self, dataset: EncodedDataset | PackedDataset) -> DataLoader:
        """Evaluation batches, in the order of the data."""
        return self._loader(dataset, self.args.eval_batch_size)

    def _steps(self, loader: DataLoader) -> int:
        return math.ceil(len(loader) / self.args.gradient_accumulation_steps)

    def _loader(
        self, dataset: Dataset, batch_size: int, seed: int | None = None, drop_last: bool = False
    ) -> DataLoader:
        lengths, workers = None, self.args.dataloader_num_workers
        if self.args.train_sampling_strategy == "group_by_length":
            lengths = partial(_tokens, dataset)
        return DataLoader(
            PaddedDataset(dataset),
            batch_sampler=GlobalBatchSampler(
                len(dataset),
                batch_size,
                self.args.process_index,
                self.args.world_size,
                seed,
                drop_last,
                lengths,
                self.args.gradient_accumulation_steps,
            ),
            **signal_safe(workers, self.collator),  # never persistent: they would miss set_epoch
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
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
    return measure(dataset.without_pixels(epoch)).tokens
