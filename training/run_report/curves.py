"""The curves of a run as one picture: loss, loss of each dataset, learning rate, speed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from training.run_report.history import History, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which all eyes tell apart (https://jfly.uni-koeln.de/color/).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B8A900", "#000000")
_TRAINING, _EVALUATION, _BEST, _RIGHT = _COLOURS[:4]
_WIDE_RANGE = 4.0  # from here on a logarithmic axis shows more


def draw_curves(history: History, path: str | Path, title: str) -> None:
    """Write a PNG of 1,320 x 880 pixels."""
    from matplotlib.figure import Figure  # here: it takes a second to import, and is drawn once

    figure = Figure(figsize=(12, 8), dpi=110, layout="constrained")
    ((loss, datasets), (rate, speed)) = figure.subplots(2, 2)
    figure.suptitle(title, fontsize=13)
    _draw_loss(loss, history)
    _draw_datasets(datasets, history)
    _draw_rate(rate, history)
    _draw_speed(speed, history)
    for axes in (loss, datasets, rate, speed):
        axes.set_xlim(0, max(history.max_steps, history.last_step, 1))
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _draw_loss(axes: "Axes", history: History) -> None:
    training, evaluation = history.series("loss"), history.series("eval_loss")
    axes.set_title("Loss (mean over supervised tokens)", fontsize=11)
    axes.plot(training, color=_TRAINING, alpha=0.25, linewidth=1)
    _plot(axes, smoothed(training), color=_TRAINING, label="training, smoothed")
    if len(evaluation):
        _points(axes, evaluation, "o-", color=_EVALUATION, label="evaluation")
        step, best = evaluation.idxmin(), evaluation.min()
        label = f"best evaluation: {best:.4f} at step {step:,}"
        axes.plot([step], [best], "*", color=_BEST, ms=13, label=label, clip_on=False, zorder=4)
    _scale(axes, training, evaluation)
    accuracy = history.series("eval_accuracy")
    if len(accuracy):
        right = _right(axes, "% of held-out answers right", _RIGHT, 100)
        _points(right, 100 * accuracy, "s--", color=_RIGHT)
    axes.legend(frameon=False)


def _draw_datasets(axes: "Axes", history: History) -> None:
    axes.set_title("Loss of each dataset (line: training, smoothed; dots: evaluation)", fontsize=11)
    names = history.names("loss/")
    drawn = []
    for number, name in enumerate(names):
        colour = _COLOURS[number % len(_COLOURS)]
        training, evaluation = history.series(f"loss/{name}"), history.series(f"eval_loss/{name}")
        _plot(axes, smoothed(training), color=colour, label=name)
        _points(axes, evaluation, "o:", color=colour, linewidth=1)
        drawn += [training, evaluation]
    _scale(axes, *drawn)
    if drawn:
        axes.legend(frameon=False, fontsize=9 if len(names) < 7 else 7)


def _draw_rate(axes: "Axes", history: History) -> None:
    rate, norm = history.series("learning_rate"), history.series("grad_norm")
    axes.set_title("Learning rate" + (" and gradient norm" if len(norm) else ""), fontsize=11)
    _plot(axes, rate, color=_TRAINING)
    axes.set_ylabel("learning rate", color=_TRAINING)
    axes.set_ylim(bottom=0)
    if len(norm):
        top = max(2.0 * norm.quantile(0.95), 1e-12)  # a few outliers do not flatten the rest
        right = _right(axes, "gradient norm, before clipping", _EVALUATION, top)
        _plot(right, norm, color=_EVALUATION, alpha=0.6, linewidth=1)


def _draw_speed(axes: "Axes", history: History) -> None:
    axes.set_title("Speed", fontsize=11)
    _plot(axes, history.series("tokens_per_second"), color=_TRAINING)
    axes.set_ylabel("tokens a second", color=_TRAINING)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    right = _right(axes, "% of the time (waiting), of the peak (MFU)", "black", 100)
    for key, colour, label in (("data_wait_share", _EVALUATION, "waiting for data"), ("mfu", _BEST, "MFU")):
        share = history.series(key)
        if len(share):
            _plot(right, 100 * share, color=colour, linewidth=1, label=label)
    if right.lines:
        right.legend(framealpha=0.8, edgecolor="none", loc="center right")


def _right(axes: "Axes", label: str, colour: str, top: float) -> "Axes":
    """A second axis, from 0."""
    right = axes.twinx()
    right.set_ylabel(label, color=colour)
    right.set_ylim(0, top)
    right.spines["top"].set_visible(False)
    return right


def _plot(axes: "Axes", series: pd.Series, **style: Any) -> None:
    """A line, which so few points that it might not be seen are shown on."""
    axes.plot(series, marker="." if len(series) < 30 else None, **style)


def _points(axes: "Axes", series: pd.Series, form: str, **style: Any) -> None:
    """Points that are whole at the edge of the axes too. Of none, the layout would take no measure."""
    if len(series):
        axes.plot(series, form, ms=4, clip_on=False, **style)


def _scale(axes: "Axes", *drawn: pd.Series) -> None:
    values = pd.concat([pd.Series(dtype=float), *(each for each in drawn if len(each))])
    values = values[values > 0]
    if len(values) and values.max() / values.min() > _WIDE_RANGE:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "2357" else "")
