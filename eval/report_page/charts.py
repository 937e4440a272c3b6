"""Accuracy as bars with confidence intervals: all geometry in the units of an SVG's view box."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.scores import Score

WIDTH = 520
_LABEL, _VALUE = 112, 52  # to the left of the bars, and to their right
_BAR, _GAP, _GROUP_GAP, _AXIS = 13, 3, 13, 20
_TICKS = (0, 25, 50, 75, 100)


@dataclass(frozen=True)
class Bar:
    """The accuracy of one checkpoint in one group; `series` is the checkpoint's number, from 0."""

    y: float
    width: float
    low: float
    high: float
    majority: float
    text: str
    label: str
    series: int


@dataclass(frozen=True)
class Group:
    """The bars of one kind of question, say, with what is written beside them."""

    name: str
    y: float
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Chart:
    """What the template needs to draw one chart."""

    title: str
    groups: tuple[Group, ...]
    ticks: tuple[tuple[float, str], ...]
    height: float
    width: int = WIDTH
    left: int = _LABEL
    bar: int = _BAR

    @property
    def base(self) -> float:
        """Where the axis is."""
        return self.height - _AXIS


def accuracy_chart(title: str, groups: Mapping[str, Sequence[Score | None]], names: Sequence[str]) -> Chart:
    """Accuracy by group: for each a score of every checkpoint of `names`, None where it has no such question."""
    made, y = [], 4.0
    for group, scores in groups.items():
        bars: list[Bar] = []
        for series, (score, name) in enumerate(zip(scores, names, strict=True)):
            if score is None:
                continue
            low, high = score.interval
            bars.append(
                Bar(
                    y=y + len(bars) * (_BAR + _GAP),
                    width=_length(score.accuracy),
                    low=_LABEL + _length(low),
                    high=_LABEL + _length(high),
                    majority=_LABEL + _length(score.majority_accuracy),
                    text=f"{score.accuracy:.0%}",
                    label=f"{name}: {score.correct} of {score.count} right, {score.accuracy:.1%}"
                    f" (95 % interval {low:.1%} to {high:.1%}); commonest answer {score.majority_accuracy:.1%}",
                    series=series,
                )
            )
        height = len(bars) * (_BAR + _GAP) - _GAP
        made.append(Group(group, y + height / 2, tuple(bars)))
        y += height + _GROUP_GAP
    ticks = tuple((_LABEL + _length(value / 100), f"{value} %") for value in _TICKS)
    return Chart(title, tuple(made), ticks, y - _GROUP_GAP + 6 + _AXIS)


def _length(share: float) -> float:
    return round(share * (WIDTH - _LABEL - _VALUE), 1)
