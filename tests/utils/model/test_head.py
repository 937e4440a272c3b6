"""Losses without logits: the same numbers and gradients, a few rows at a time."""

import pytest
import torch
from torch.nn import functional as F

from utils.model import loss as loss_module
from utils.model.loss import Head


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_losses_and_gradients_equal_those_over_all_logits(learns, bias, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 3 * 50)  # three rows at a time
    torch.manual_seed(0)
    head = Head(8, 50, bias=bias).requires_grad_(learns)
    targets, weights = torch.randint(50, (10,)), torch.randn(10)

    def run(losses):
        hidden = torch.randn(10, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        head.zero_grad()
        (losses(hidden) * weights).sum().backward()
        return [losses(hidden), hidden.grad, *(p.grad.clone() for p in head.parameters() if learns)]

    ours = run(lambda hidden: head(hidden, targets))
    theirs = run(lambda hidden: F.cross_entropy(head(hidden), targets, reduction="none"))
    assert len(ours) == len(theirs) == 2 + learns * (1 + bias)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_logits_of_a_large_vocabulary_never_exist_whole(monkeypatch):
    """No tensor of a forward and backward is larger than a chunk; half precision loses no more than it must."""
    torch.manual_seed(0)
    rows, vocabulary = 512, 20_000
    monkeypatch.setattr(loss_module, "CHUNK", 16 * vocabulary)
    head = Head(16, vocabulary, bias=False).bfloat16().requires_grad_(False)
    hidden = torch.randn(rows, 16).bfloat16().requires_grad_()
    targets = torch.randint(vocabulary, (rows,))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        losses = head(hidden, targets)
        losses.mean().backward()
    assert 16 * vocabulary <= largest <= 20 * vocabulary
    exact = F.cross_entropy(hidden.detach().double() @ head.weight.double().T, targets, reduction="none")
    assert (losses - exact).abs().max() < 0.05
