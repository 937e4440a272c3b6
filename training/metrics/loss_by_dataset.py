"""The loss of each dataset beside that of all: from the losses that a step has computed anyway.

A conversation is of one dataset, and a batch lists its conversations with the number of their supervised tokens
(`Origin`). So each token's loss finds its dataset, in padded and in packed rows, with no further forward and
without waiting for the device.
"""

from collections.abc import Sequence
from pathlib import PurePath

import torch
import torch.distributed as dist

from training.extension import Extension, Prepared
from utils.data import Batch
from utils.data.bad_records import Origin


class LossByDataset:
    """Sums losses and counts tokens of each dataset, over micro-batches and over processes."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names` are the datasets', the same in all processes."""
        self.names = list(names)
        self._number = {name: number for number, name in enumerate(self.names)}
        self._totals: torch.Tensor | None = None  # [datasets, 2]: loss, supervised tokens

    def add(self, origins: Sequence[Origin], token_losses: torch.Tensor) -> None:
        """Take up a batch: its conversations, and the loss of each of its n supervised tokens, [n]."""
        supervised = torch.tensor([origin.supervised for origin in origins], dtype=torch.int64)
        numbers = torch.tensor([self._number[origin.dataset] for origin in origins], dtype=torch.int64)
        of_token = numbers.repeat_interleave(supervised)  # [n]
        assert len(of_token) == len(token_losses), "every supervised token has an origin"
        device = token_losses.device
        of_token = of_token.to(device, non_blocking=True)
        losses = token_losses.double()
        # Not index_add_, whose order of summing is left to chance on a GPU: runs are to be repeatable.
        mine = of_token == torch.arange(len(self.names), device=device)[:, None]  # [datasets, n]
        mine = mine & losses.isfinite()  # others are those of a step that is skipped
        totals = torch.stack([torch.where(mine, losses, 0.0).sum(dim=1), mine.sum(dim=1)], dim=1)
        self._totals = totals if self._totals is None else self._totals + totals

    def read(self, device: torch.device, prefix: str = "loss") -> dict[str, float]:
        """The mean loss over the supervised tokens of each dataset since the last reading; all processes call.

        Keys are `{prefix}/{dataset}`; datasets that no token was of are left out.
        """
        totals, self._totals = self._totals, None
        if totals is None:
            totals = torch.zeros(len(self.names), 2, dtype=torch.float64)
        totals = totals.to(device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(totals)
        labels = labels_of(self.names)
        return {
            f"{prefix}/{labels[name]}": loss / tokens
            for name, (loss, tokens) in zip(self.names, totals.tolist(), strict=True)
            if tokens
        }


class DatasetLosses(Extension):
    """The losses of datasets, in each line of the log and in each evaluation."""

    def prepare(self, parts: Prepared) -> None:
        names = parts.data_arguments.dataset_names
        self.training, self.evaluation = LossByDataset(names), LossByDataset(names)

    def computed(
        self, batch: Batch, loss: torch.Tensor, token_losses: torch.Tensor, evaluating: bool = False
    ) -> None:
        (self.evaluation if evaluating else self.training).add(batch.origins, token_losses)

    def add_to_log(self, logs: dict[str, float]) -> None:
        logs |= self.training.read(self.context.args.device)

    def add_to_evaluation(self, metrics: dict[str, float]) -> None:
        metrics |= self.evaluation.read(self.context.args.device, "eval_loss")


def labels_of(names: Sequence[str]) -> dict[str, str]:
    """Short names for log lines and curves: of a path its last part, where no other name has the same."""
    last = [PurePath(name).name for name in names]
    return {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)}
