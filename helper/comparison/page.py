"""The page and the chart that a comparison writes: what was done, what came of it, and what may be said.

The page's text is `page.md.j2`. Means over seeds have intervals by Student's t, in pairs where seeds are compared.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd

from helper.comparison.cells import DECODERS, FORMS, PARTS, Row
from training.run_report.summary import Table, as_markdown

AGAINST = "causal"
ENOUGH = 0.9
"""The share of right answers that counts as learnt."""
Measure = Callable[[Row], float]
"""A number of a training; nan where it has none."""

# The 0.975 quantiles of Student's t with 2, 3, ... degrees of freedom, as every table of statistics has them.
_T = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


class Mean(NamedTuple):
    """The mean of n values and half the width of its 95 % interval; nan of none, and of fewer than three."""

    value: float
    half: float
    n: int

    @classmethod
    def of(cls, values: pd.Series) -> "Mean":
        """Of the values that are there."""
        n = int(values.count())  # two that happen to agree have no interval
        return cls(values.mean(), _T[min(n, 10) - 3] * values.sem() if n > 2 else math.nan, n)

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves zero out."""
        return abs(self.value) > self.half


def by_seed(rows: Sequence[Row], measure: Measure) -> pd.DataFrame:
    """A number of each training, seeds down and forms across; nan where it is not known."""
    values = {form: {row["seed"]: measure(row) for row in rows if row["form"] == form} for form in FORMS}
    return pd.DataFrame({form: pd.Series(found, dtype=float) for form, found in values.items() if found})


def means(rows: Sequence[Row], measure: Measure) -> dict[str, Mean]:
    """Each form's mean over seeds."""
    return {form: Mean.of(values) for form, values in by_seed(rows, measure).items()}


def leads(rows: Sequence[Row], measure: Measure) -> dict[str, Mean]:
    """How much more of it each form has than causal attention, seed by seed on the same samples."""
    known = by_seed(rows, measure)
    ahead = known.sub(known.get(AGAINST, math.nan), axis=0)
    return {form: Mean.of(values) for form, values in ahead.items()}


def answered(part: str, after: int | None = None, kind: str = "overall") -> Measure:
    """The share of right answers in a part (singles or dialogues) after so many samples of it (None: at the end)."""

    def measure(row: Row) -> float:
        asked = [each for each in row["asked"] if each["part"] == part and after in (None, each[part])]
        right, questions = asked[-1]["right"].get(kind, (0, 0)) if asked else (0, 0)
        return right / questions if questions else math.nan

    return measure


def log_samples_to(part: str) -> Measure:
    """The logarithm of how many samples of a part it took to answer `ENOUGH` of it right; nan where it never did."""

    def measure(row: Row) -> float:
        for asked in row["asked"]:
            right, questions = asked["right"]["overall"]
            if asked["part"] == part and right >= ENOUGH * questions:
                return math.log(asked[part])
        return math.nan

    return measure


def page(rows: Sequence[Row], name: str, second: Sequence[Row] = ()) -> str:
    """Markdown; of an unfinished comparison what is there. Results and chart are called by `name`.

    second: rows of the same comparison on another decoder, which get a section where there are any.
    """
    plan = rows[0]["settings"]
    accuracy = [
        (title, as_markdown(accuracy_table(rows, part, _three(plan, part)))) for part, title in _parts(plan)
    ]
    other = None
    if second:
        decoder = second[0]["settings"]["decoder"]
        table = as_markdown(samples_table(second))
        other = {"decoder": DECODERS[decoder], "file": f"{name}_{decoder}", "seeds": _seeds(second)}
        other["table"] = table
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.md.j2").render(
        name=name,
        plan=plan,
        decoder=DECODERS[plan["decoder"]],
        seeds=_seeds(rows),
        shown=len(means(rows, lambda row: 0)),
        forms=len(FORMS),
        forms_table=as_markdown(_forms_table(rows)),
        verdicts=verdicts(rows),
        accuracy_tables=accuracy,
        second=other,
        kind_table=as_markdown(kind_table(rows)) if plan["asked_dialogues"] else "",
        distractor_table=as_markdown(distractor_table(rows)),
        cost_table=as_markdown(cost_table(rows)),
    )


def accuracy_table(rows: Sequence[Row], part: str, sizes: Sequence[int]) -> Table:
    """A row for each form: right answers after so many samples, samples to 90 %, and their ratio to causal's."""
    table: Table = [("form", *(f"{size:,}" for size in sizes), "samples to 90 %", f"times {AGAINST}")]
    right = [means(rows, answered(part, size)) for size in sizes]
    for form, samples in _samples(rows, part).items():
        table.append((form, *(_percent(each[form]) for each in right), *samples))
    guessed = _percent(means(rows, lambda row: row["commonest"][part])[rows[0]["form"]])
    return [*table, ("the commonest answer of each kind", *[guessed] * len(sizes), "-", "-")]


def samples_table(rows: Sequence[Row]) -> Table:
    """A row for each form: samples to 90 % in each part, and their ratio to causal's."""
    parts = _parts(rows[0]["settings"])
    columns = [_samples(rows, part) for part, _ in parts]
    heading = ("form", *(head for _, title in parts for head in (title, f"times {AGAINST}")))
    return [heading, *((form, *(cell for each in columns for cell in each[form])) for form in columns[0])]


def kind_table(rows: Sequence[Row]) -> Table:
    """A row for each kind of question, after all samples."""
    kinds = sorted({kind for row in rows for kind in row["asked"][-1]["right"]} - {"overall"})
    return _by_form(rows, "kind", {kind: answered("dialogues", None, kind) for kind in kinds})


def distractor_table(rows: Sequence[Row]) -> Table:
    """A row for each number of other images."""

    def share(count: str) -> Measure:
        return lambda row: row["among_others"][count][0] / row["among_others"][count][1]

    return _by_form(rows, "other images", {count: share(count) for count in rows[0]["among_others"]})


def cost_table(rows: Sequence[Row]) -> Table:
    """Seconds and operations of a sample of each part."""
    last = _parts(rows[0]["settings"])[-1][0]

    def cost(name: str, part: str, unit: float) -> Measure:
        def measure(row: Row) -> float:
            after = [each for each in row["asked"] if each["part"] == part][-1]
            before = [each[name] for each in row["asked"] if each[part] == 0]
            return (after[name] - max(before, default=0)) / after[part] / unit

        return measure

    units = {"seconds": 1.0, "operations": 1e9}
    costs = [
        means(rows, cost(name, part, unit)) for name, unit in units.items() for part in ("singles", last)
    ]
    header = ("form", "s, a single image", "s, a dialogue", "GFLOP, a single image", "GFLOP, a dialogue")
    return [header, *((form, *(f"{each[form].value:.3g}" for each in costs)) for form in costs[0])]


def verdicts(rows: Sequence[Row]) -> list[str]:
    """For each other form and part: whether it is certainly ahead of causal attention, or behind."""
    plan = rows[0]["settings"]
    said: dict[tuple[str, str], list[str]] = {}
    for part, title in _parts(plan):
        for size in _three(plan, part):
            for form, ahead in leads(rows, answered(part, size)).items():
                if form != AGAINST and ahead.n:
                    said.setdefault((form, title), []).append(f"{_verdict(ahead)} after {size:,}")
    forms = list(FORMS)
    ordered = sorted(said.items(), key=lambda each: forms.index(each[0][0]))
    return [f"**{form}**, {title}: {'; '.join(each)}." for (form, title), each in ordered]


def _verdict(ahead: Mean) -> str:
    points = f"{100 * ahead.value:+.1f} points"
    if math.isnan(ahead.half):
        return f"{points} ({ahead.n} seed{'s' * (ahead.n > 1)})"
    interval = f"({points} ± {100 * ahead.half:.1f}, {ahead.n} seeds)"
    if not ahead.is_certain:
        return f"no certain difference {interval}"
    return f"certainly {'more' if ahead.value > 0 else 'fewer'} right than {AGAINST} {interval}"


def _parts(plan: Row) -> list[tuple[str, str]]:
    """The parts that a training has, with their titles."""
    return [(part, title) for part, title in PARTS.items() if plan[f"asked_{part}"]]


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(map(str, sorted({row["seed"] for row in rows})))


def _forms_table(rows: Sequence[Row]) -> Table:
    heading = ("form", "attention", "image layers", "gate", "summary", "learning rate", "loss at step 1")
    rates = {row["form"]: f"{row['rate']:g}" for row in rows}
    losses = means(rows, lambda row: row["losses"][0])
    return [
        heading,
        *((name, *astuple(FORMS[name]), rates[name], f"{losses[name].value:.1f}") for name in losses),
    ]


def _by_form(rows: Sequence[Row], heading: str, measures: Mapping[str, Measure]) -> Table:
    found = {name: means(rows, measure) for name, measure in measures.items()}
    forms = next(iter(found.values()))
    return [(heading, *forms), *((name, *map(_percent, each.values())) for name, each in found.items())]


def _samples(rows: Sequence[Row], part: str) -> dict[str, tuple[str, str]]:
    """Of each form: samples to 90 %, and how many times as many as causal attention took."""
    reached, ratios = means(rows, log_samples_to(part)), leads(rows, log_samples_to(part))
    cells = {}
    for form, mean in reached.items():
        of = f"({mean.n} of {sum(row['form'] == form for row in rows)})"
        samples = f"{math.exp(mean.value):,.0f} {of}" if mean.n else f"- {of}"
        cells[form] = samples, "1" if form == AGAINST else _ratio(ratios[form])
    return cells


def _ratio(logarithm: Mean) -> str:
    if not logarithm.n:
        return "-"
    value = f"{math.exp(logarithm.value):.2f}"
    if math.isnan(logarithm.half):
        return value
    low, high = (math.exp(logarithm.value + side * logarithm.half) for side in (-1, 1))
    return f"{value} ({low:.2f} to {high:.2f})"


def _three(plan: Row, part: str) -> list[int]:
    """Of the numbers of samples after which a part is asked the last, and those nearest to its half and quarter."""
    sizes = plan[f"asked_{part}"]
    return sorted({min(sizes, key=lambda size: abs(size - sizes[-1] / part)) for part in (4, 2, 1)})


def _percent(mean: Mean) -> str:
    if not mean.n:
        return "-"
    value = f"{100 * mean.value:.1f}"
    return f"{value} %" if math.isnan(mean.half) else f"{value} ± {100 * mean.half:.1f} %"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the chart, a PNG of 1,680 x 600 pixels: right answers against samples, a line for each form.

    A panel for each part of the training; means over seeds, with their 95 % intervals as bands.
    """
    from matplotlib.figure import Figure  # here: it takes a second to import

    plan = rows[0]["settings"]
    figure = Figure(figsize=(14, 5), dpi=120, layout="constrained")
    parts = _parts(plan)
    for axes, (part, title) in zip(figure.subplots(1, len(parts), sharey=True), parts, strict=True):
        right = {size: means(rows, answered(part, size)) for size in plan[f"asked_{part}"]}
        for place, form in enumerate(means(rows, answered(part))):
            known = pd.DataFrame({size: each[form] for size, each in right.items() if each[form].n}).T
            middle, half = 100 * known[0], 100 * known[1].fillna(0)
            colour, style = _COLOURS[place % len(_COLOURS)], "--" if place >= len(_COLOURS) else "-"
            axes.plot(middle, color=colour, linestyle=style, marker="o", markersize=3, label=form)
            axes.fill_between(
                known.index, middle - half, middle + half, color=colour, alpha=0.12, linewidth=0
            )
        axes.set_title(title)
        axes.set_xlabel("samples learnt from")
        axes.set_ylim(0, 100)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("right answers in a style that was held out, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
