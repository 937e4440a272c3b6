"""Right answers against samples, a line for each form; a panel for each part of the training."""

from collections.abc import Sequence
from pathlib import Path

from helper.comparison.cells import FORMS, Row
from helper.comparison.statistics import answered, mean

_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
PARTS = {
    "singles": "single images",
    "names": "what each of three images shows",
    "dialogues": "dialogues of all kinds over three images",
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG of 1,680 x 600 pixels: means over seeds, with their 95 % intervals as bands."""
    from matplotlib.figure import Figure  # here: it takes a second to import

    figure = Figure(figsize=(14, 5), dpi=120, layout="constrained")
    forms = [name for name in FORMS if any(row["form"] == name for row in rows)]
    for axes, (part, title) in zip(figure.subplots(1, len(PARTS), sharey=True), PARTS.items(), strict=True):
        for place, form in enumerate(forms):
            sizes = rows[0]["settings"][f"asked_{part}"]
            known = {size: mean(rows, form, answered(part, size)) for size in sizes}
            known = {size: value for size, value in known.items() if value is not None}
            middle = [100 * each.value for each in known.values()]
            halves = [100 * (each.half or 0) * (each.n > 2) for each in known.values()]
            colour, style = _COLOURS[place % len(_COLOURS)], "--" if place >= len(_COLOURS) else "-"
            axes.plot(
                list(known), middle, color=colour, linestyle=style, marker="o", markersize=3, label=form
            )
            low, high = zip(*((m - h, m + h) for m, h in zip(middle, halves, strict=True)), strict=True)
            axes.fill_between(list(known), low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_title(title)
        axes.set_xlabel("samples learnt from")
        axes.set_ylim(0, 100)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("right answers in a style that was held out, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
