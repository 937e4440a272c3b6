"""Muon in float32: torch's own orthogonalises in bfloat16, which processors without it compute ten times slower."""

from __future__ import annotations

from collections.abc import Iterable

import torch

_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of a quintic Newton-Schulz iteration, which carries singular values of 0.001 to 1 near 1 in five steps."""


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made nearly orthogonal before they are subtracted (Jordan et al., "Muon", 2024).

    Nesterov momentum; the update of a matrix [m, n] is scaled by sqrt(max(1, m / n)), as torch.optim.Muon does.
    """

    def __init__(self, matrices: Iterable[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One step; every matrix needs a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                moving = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                moving.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalised(matrix.grad.lerp(moving, group["momentum"]))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.sub_(update, alpha=group["lr"] * scale)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix [m, n] with the same singular vectors, and singular values near 1."""
    first, second, third = _COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = wide @ wide.T
        wide = first * wide + (second * gram + third * gram @ gram) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
