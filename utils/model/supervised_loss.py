"""The loss of what is learned: head and cross entropy at supervised rows only."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_visual_chat import IGNORED_LABEL
from .head import Head


@dataclass(frozen=True, eq=False)
class SupervisedLoss:
    """The loss to learn from, and that of each of the n supervised tokens in row-major order, without a graph."""

    loss: torch.Tensor  # scalar
    token_losses: torch.Tensor  # [n] fp32


@dataclass(frozen=True, eq=False)
class Supervised:
    """What is learned in a batch: rows [n] of the B * Q, each before a supervised token, and these targets [n]."""

    rows: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, labels: torch.Tensor, count: int | None = None) -> "Supervised":
        """From labels [B, Q]; count: how many are supervised, so that a GPU need not be waited for."""
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL).flatten()
        supervised = targets != IGNORED_LABEL
        rows = supervised.nonzero() if count is None else supervised.nonzero_static(size=count)
        rows = rows[:, 0]
        return cls(rows, targets[rows])


def supervised_loss(
    head: nn.Module,
    hidden: torch.Tensor,
    supervised: Supervised,
    num_items: int | torch.Tensor | None = None,
) -> SupervisedLoss:
    """Cross entropy of each next token that is supervised: hidden [B, Q, D].

    The sum over supervised tokens is divided by num_items (their number, where not given). No supervised
    token: a loss of 0 with a graph.
    """
    rows = hidden.flatten(0, 1)[supervised.rows.to(hidden.device)]  # [n, D]
    if isinstance(head, Head):
        token_losses = head(rows, supervised.targets.to(rows.device))  # [n]
    else:
        logits = head(rows).float()
        token_losses = F.cross_entropy(logits, supervised.targets.to(logits.device), reduction="none")
    if num_items is None:
        num_items = max(supervised.rows.numel(), 1)
    elif isinstance(num_items, torch.Tensor):
        num_items = num_items.to(token_losses.device)
    return SupervisedLoss(token_losses.sum() / num_items, token_losses.detach())
