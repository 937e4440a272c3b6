"""Means over seeds and what may be said of them: intervals by Student's t, in pairs where seeds are compared."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from helper.comparison.cells import Row

Measure = Callable[[Row], float | None]
"""A number of a training; None where it has none."""

# The 0.975 quantiles of Student's t with 2, 3, ... degrees of freedom, as every table of statistics has them.
_T = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262,
      2.228, 2.201, 2.179, 2.160, 2.145, 2.131)  # fmt: skip
_FEWEST = 3
"""Values that have an interval: two seeds that happen to agree are none."""
_NORMAL = 1.960
ENOUGH = 0.9
"""The share of right answers that counts as learnt."""


@dataclass(frozen=True)
class Mean:
    """The mean of n values and half the width of its 95 % interval; None of fewer than three."""

    value: float
    half: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Raises `ValueError` where there is no value."""
        if not len(values):
            raise ValueError("there is nothing to take the mean of")
        n, mean = len(values), float(np.mean(values))
        if n < _FEWEST:
            return cls(mean, None, n)
        quantile = _T[n - _FEWEST] if n - _FEWEST < len(_T) else _NORMAL
        return cls(mean, quantile * float(np.std(values, ddof=1)) / n**0.5, n)

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.half is not None and abs(self.value) > self.half


def by_seed(rows: Iterable[Row], form: str, measure: Measure) -> dict[int, float]:
    """A form's values, of the seeds that have one."""
    values = {row["seed"]: measure(row) for row in rows if row["form"] == form}
    return {seed: value for seed, value in values.items() if value is not None}


def mean(rows: Iterable[Row], form: str, measure: Measure) -> Mean | None:
    """A form's mean over seeds; None where there is no value yet."""
    values = by_seed(rows, form, measure)
    return Mean.of(list(values.values())) if values else None


def lead(rows: Sequence[Row], form: str, other: str, measure: Measure) -> Mean | None:
    """How much more of it the first has than the other, seed by seed on the same samples; None where unknown."""
    mine, others = by_seed(rows, form, measure), by_seed(rows, other, measure)
    pairs = [mine[seed] - others[seed] for seed in sorted(mine.keys() & others.keys())]
    return Mean.of(pairs) if pairs else None


def answered(part: str, after: int | None = None, kind: str = "overall") -> Measure:
    """The share of right answers in a part (singles or dialogues) after so many samples of it (None: at the end)."""

    def measure(row: Row) -> float | None:
        asked = [each for each in row["asked"] if each["part"] == part and after in (None, each[part])]
        right, questions = asked[-1]["right"].get(kind, (0, 0)) if asked else (0, 0)
        return right / questions if questions else None

    return measure


def log_samples_to(part: str) -> Measure:
    """The logarithm of how many samples of a part it took to answer `ENOUGH` of it right; None where it never did."""

    def measure(row: Row) -> float | None:
        for asked in row["asked"]:
            right, questions = asked["right"]["overall"]
            if asked["part"] == part and right >= ENOUGH * questions:
                return math.log(asked[part])
        return None

    return measure
