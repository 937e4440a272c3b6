"""Accuracy against training records, a line for each attention."""

from collections.abc import Sequence
from pathlib import Path

from helper.comparison.cells import Outcome
from helper.comparison.statistics import accuracy

COLOURS = {"mmca": "#0072B2", "causal": "#D55E00", "cross": "#009E73"}
_MARGIN = 1.25  # factor between the outermost sizes and the edges
_APART = 1.015  # factor between the points of two attentions, so that their bars do not cover each other


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a PNG of 1,080 x 660 pixels: means over seeds with 95 % intervals, each seed a faint dot."""
    from matplotlib.figure import Figure  # here: it takes a second to import

    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    sizes = sorted({outcome.cell.samples for outcome in outcomes})
    present = {outcome.cell.attention for outcome in outcomes}
    shown = [name for name in COLOURS if name in present]
    for place, name in enumerate(shown):
        shift = _APART ** (place - (len(shown) - 1) / 2)
        means = {size: accuracy(outcomes, name, size) for size in sizes}
        known = {size: mean for size, mean in means.items() if mean is not None}
        halves = [100 * mean.half for mean in known.values() if mean.half is not None]
        axes.errorbar(
            [size * shift for size in known],
            [100 * mean.value for mean in known.values()],
            yerr=halves if len(halves) == len(known) else None,
            color=COLOURS[name],
            marker="o",
            capsize=4,
            label=name,
        )
        mine = [outcome for outcome in outcomes if outcome.cell.attention == name]
        axes.scatter(
            [outcome.cell.samples * shift for outcome in mine],
            [100 * outcome.accuracy for outcome in mine],
            color=COLOURS[name],
            alpha=0.35,
            s=14,
            linewidths=0,
            zorder=3,
        )
    axes.axhline(
        100 * outcomes[0].majority, color="#7F7F7F", linestyle="--", linewidth=1, label="commonest answer"
    )
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / _MARGIN, sizes[-1] * _MARGIN)
    axes.set_ylim(bottom=0)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("training records")
    axes.set_ylabel("right answers on held-out dialogues, %")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()  # lines before bars, unless told otherwise
    order = sorted(range(len(labels)), key=lambda place: labels[place] not in COLOURS)
    axes.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        framealpha=0.8,
        edgecolor="none",
        loc="best",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
