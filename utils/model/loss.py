"""The loss at supervised tokens, and the head that computes it without ever holding all logits.

With a vocabulary of 128 thousand, the logits of a few thousand tokens take gigabytes, several times over in a
backward pass. Here a few rows at a time are turned into losses and, since the head is frozen, at once into
gradients of the hidden states, which are small; the logits are gone before the next rows come.
Source: the idea is that of fused linear cross entropy; Hsu et al., "Liger kernel", 2024 (arXiv:2410.10989).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from .configuration_visual_chat import IGNORED_LABEL

CHUNK = 1 << 24
"""Logits at a time: 64 MiB of them in float32."""


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and that of each of the n supervised tokens in row-major order, [n] float32 without a graph: cross
    entropy of each next token, for hidden [B, Q, D].

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
    return token_losses.sum() / num_items, token_losses.detach()


class Head(nn.Linear):
    """A linear layer from hidden states to logits. It is entered once, however many rows there are: ZeRO-3
    gathers its weight then, on all processes together.
    """

    @classmethod
    def of(cls, layer: nn.Module) -> nn.Module:
        """The same parameters as a head; layers of other kinds (quantised, say) stay as they are."""
        if type(layer) is not nn.Linear:
            return layer
        head = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        head.weight, head.bias = layer.weight, layer.bias
        return head.train(layer.training)

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [..., V] of hidden states [..., D]; with targets [n] for [n, D], losses [n] in float32."""
        if targets is None:
            return super().forward(hidden)
        return _Losses.apply(hidden, self.weight, self.bias, targets)


class _Losses(torch.autograd.Function):
    """Cross entropy of each row against its target, computed chunk by chunk."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        learns = needs_weight or needs_bias
        losses = hidden.new_empty(targets.shape, dtype=torch.float32)
        gradient = torch.empty_like(hidden) if needs_hidden and not learns else None
        for rows in _chunks(targets.numel(), weight.shape[0]):
            logits = F.linear(hidden[rows], weight, bias).float()  # [c, V]
            lse = logits.logsumexp(dim=1)
            wanted = targets[rows, None]
            losses[rows] = lse - logits.gather(1, wanted)[:, 0]
            if gradient is not None:
                gradient[rows] = _slope(logits, lse, wanted).to(weight.dtype) @ weight
        ctx.learns = learns
        if learns:  # the weight's gradient needs the losses' own first
            ctx.save_for_backward(hidden, weight, bias, targets)
        else:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not ctx.learns:
            (gradient,) = ctx.saved_tensors
            return gradient * grad[:, None].to(gradient.dtype), None, None, None
        hidden, weight, bias, targets = ctx.saved_tensors
        d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
        d_bias = None if bias is None else torch.zeros_like(bias)
        for rows in _chunks(targets.numel(), weight.shape[0]):
            logits = F.linear(hidden[rows], weight, bias).float()
            slope = _slope(logits, logits.logsumexp(dim=1), targets[rows, None]).mul_(grad[rows, None])
            slope = slope.to(weight.dtype)
            d_hidden[rows] = slope @ weight
            d_weight += slope.T @ hidden[rows]
            if d_bias is not None:
                d_bias += slope.sum(dim=0)
        return d_hidden, d_weight, d_bias, None


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    step = max(CHUNK // vocabulary, 1)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _slope(logits: torch.Tensor, lse: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The derivative of each row's loss by its logits [c, V], in place of them; targets [c, 1]."""
    slope = logits.sub_(lse[:, None]).exp_()
    return slope.scatter_add_(1, targets, slope.new_full((), -1.0).expand(targets.shape))
