"""Means over seeds and what may be said of them: intervals by Student's t."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from helper.comparison.cells import Outcome

# The 0.975 quantiles of Student's t with 1, 2, ... degrees of freedom, as every table of statistics has them.
_T = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
_NORMAL = 1.960


@dataclass(frozen=True)
class Mean:
    """The mean of n values and half the width of its 95 % interval; None of a single value."""

    value: float
    half: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Raises `ValueError` where there is no value."""
        if not len(values):
            raise ValueError("there is nothing to take the mean of")
        n, mean = len(values), float(np.mean(values))
        if n == 1:
            return cls(mean, None, 1)
        quantile = _T[n - 2] if n - 2 < len(_T) else _NORMAL
        return cls(mean, quantile * float(np.std(values, ddof=1)) / n**0.5, n)

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.half is not None and abs(self.value) > self.half


def accuracy(
    outcomes: Iterable[Outcome], attention: str, samples: int, kind: str | None = None
) -> Mean | None:
    """The mean accuracy of an attention after so many records, over seeds; None where nothing is known yet."""
    values = [
        outcome.accuracy if kind is None else outcome.kinds[kind]
        for outcome in outcomes
        if (outcome.cell.attention, outcome.cell.samples) == (attention, samples)
    ]
    return Mean.of(values) if values else None


def lead(outcomes: Iterable[Outcome], attention: str, other: str, samples: int) -> Mean | None:
    """How much more accurate the first is than the other, seed by seed on the same data; None where unknown."""
    values: dict[int, dict[str, float]] = {}
    for outcome in outcomes:
        if outcome.cell.samples == samples:
            values.setdefault(outcome.cell.seed, {})[outcome.cell.attention] = outcome.accuracy
    both = [each[attention] - each[other] for each in values.values() if {attention, other} <= each.keys()]
    return Mean.of(both) if both else None
