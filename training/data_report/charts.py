"""Histograms as the bars that the page draws: all geometry in the units of an SVG's view box."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

WIDTH, HEIGHT = 290, 132
_LEFT, _RIGHT, _TOP, _BOTTOM = 4, 4, 16, 20  # margins around the bars
_MOST_BARS, _WIDEST = 24, 44


@dataclass(frozen=True)
class Bar:
    """A rectangle, and what it says when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Tick:
    """A number under the bars; `anchor` is SVG's text-anchor."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Histogram:
    """What the template needs to draw one histogram."""

    title: str
    unit: str
    summary: str
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    limit: float | None  # where a vertical line stands
    limit_label: str
    width: int = WIDTH
    height: int = HEIGHT
    base: int = HEIGHT - _BOTTOM


def histogram(
    title: str,
    values: np.ndarray,
    unit: str,
    limit: int | None = None,
    limit_label: str = "",
    percent: bool = False,
) -> Histogram:
    """How often which value of `values` [n] occurs; whole numbers, or with `percent` shares from 0 to 1.

    Few different whole numbers get a bar each, others bins of equal width. `limit` marks a value that matters.
    """
    edges = _edges(values, percent)
    counts, _ = np.histogram(values, bins=edges)
    place = partial(_place, least=float(edges[0]), most=float(edges[-1]))
    tallest = max(int(counts.max(initial=0)), 1)
    room = HEIGHT - _TOP - _BOTTOM
    bars = []
    for first, last, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True):
        left, right = place(float(first)), place(float(last))
        gap = max(min(2.0, (right - left) * 0.15), right - left - _WIDEST)
        height = max(room * count / tallest, 1.5) if count else 0.0  # a single one in a million is seen too
        box = (left + gap / 2, HEIGHT - _BOTTOM - height, right - left - gap, height)
        x, y, width, tall = (round(each, 2) for each in box)
        label = f"{_range(first, last, percent)} {unit}".strip() + f": {count:,}"
        bars.append(Bar(x, y, width, tall, label))
    shown_limit = place(float(limit)) if limit is not None and edges[0] <= limit <= edges[-1] else None
    return Histogram(
        title,
        unit,
        _summary(values, percent),
        tuple(bars),
        _ticks(edges, place, percent),
        round(shown_limit, 2) if shown_limit is not None else None,
        limit_label,
    )


def _place(value: float, least: float, most: float) -> float:
    """From a value to its place on the horizontal axis."""
    return _LEFT + (value - least) / max(most - least, 1e-9) * (WIDTH - _LEFT - _RIGHT)


def _edges(values: np.ndarray, percent: bool) -> np.ndarray:
    if percent:
        return np.linspace(0, 1, 21)
    least, most = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if most - least < _MOST_BARS:
        return np.arange(least, most + 2) - 0.5
    step = _round_up((most - least + 1) / _MOST_BARS)
    return np.arange(least // step * step, most + step + 1, step).astype(float)


def _round_up(step: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..., so that borders are round numbers."""
    power = 10 ** int(np.floor(np.log10(max(step, 1))))
    return int(next(each * power for each in (1, 2, 5, 10) if each * power >= step))


def _range(first: float, last: float, percent: bool) -> str:
    if percent:
        return f"{100 * first:.0f} to {100 * last:.0f} %"
    least, most = int(np.ceil(first)), int(np.ceil(last)) - 1
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _summary(values: np.ndarray, percent: bool) -> str:
    if not len(values):
        return "nothing"
    parts = (("median", np.median(values)), ("mean", np.mean(values)), ("max", np.max(values)))
    return ", ".join(
        f"{name} {100 * value:.0f} %" if percent else f"{name} {_short(value)}" for name, value in parts
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _ticks(edges: np.ndarray, place: Callable[[float], float], percent: bool) -> tuple[Tick, ...]:
    if percent:
        shown = [(0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %")]
    elif edges[1] - edges[0] == 1 and edges[0] % 1:  # a bar for each number
        numbers = np.ceil(edges[:-1]).astype(int)
        shown = [(float(each), f"{each:,}") for each in numbers[:: -(-len(numbers) // 8)]]
    else:
        shown = [(float(each), f"{each:,.0f}") for each in edges[[0, len(edges) // 2, -1]]]
    ticks = []
    for value, text in shown:
        x = place(value)
        anchor = "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"
        ticks.append(Tick(round(x, 2), text, anchor))
    return tuple(ticks)
