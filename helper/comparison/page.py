"""The page and the chart that a comparison writes: what was done, what came of it, and what may be said."""

import math
from collections.abc import Sequence
from pathlib import Path

from helper.comparison.cells import DECODERS, FORMS, PARTS, Row
from helper.comparison.statistics import Mean, Measure, answered, by_seed, lead, log_samples_to, mean
from training.run_report.summary import Table, as_markdown

AGAINST = "causal"
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def page(rows: Sequence[Row], name: str, second: Sequence[Row] = ()) -> str:
    """Markdown; of an unfinished comparison what is there. Results and chart are called by `name`.

    second: rows of the same comparison on another decoder, which get a section where there are any.
    """
    plan = rows[0]["settings"]
    seeds = sorted({row["seed"] for row in rows})
    parts = [
        f"# Attentions compared on {DECODERS[plan['decoder']]}, {'with' if plan['lora'] else 'without'} adapters",
        f"Written by `python -m helper.compare{'' if plan['lora'] else ' --without_adapters'} --decoder"
        f" {plan['decoder']}`, which resumes after an interruption; each training is a line of"
        f" [{name}.jsonl]({name}.jsonl). {len(_shown(rows))} of {len(FORMS)} forms are trained so far.",
        f"![Right answers against samples](images/{name}.png)",
        "## What was compared",
        _method(plan, seeds),
        as_markdown(_forms_table(rows)),
        "## What may be said",
        "Differences from causal attention, paired by seed. Those of fewer than three seeds are no evidence.",
        "\n".join(f"- {sentence}" for sentence in verdicts(rows)),
        "This is one small frozen decoder, one encoder with nine tokens an image, pictograms, and"
        " some hundred samples. It says how soon each form learns to see here; not how a larger decoder behaves, nor"
        " what any form knows after a long training.",
    ]
    for part, title in _parts(plan):
        parts += [
            f"## {title.capitalize()}",
            "Right answers, mean over seeds with its 95 % interval (Student's t, from three seeds on), after so many"
            " such samples; how many it took to answer 90 % right (geometric mean of the seeds that got there, and how"
            f" many did); and how many times as many as {AGAINST} attention took, over the seeds in which both did.",
            as_markdown(accuracy_table(rows, part, _three(plan, part))),
        ]
    if second:
        parts += ["## A second decoder", _second_decoder(second, name), as_markdown(samples_table(second))]
    if plan["asked_dialogues"]:
        parts += [
            "## By kind of question",
            "In dialogues over three images, at the end of training. *position*-like kinds are `which` and `odd`;"
            " `match` binds two images: it asks which other one shows what one of them shows.",
            as_markdown(kind_table(rows)),
        ]
    parts += [
        "## With more images around",
        "Right answers to *What does image N show?*, N from 1 to 3, at the end of training, with so many other images"
        " in the dialogue. Training showed at most two others.",
        as_markdown(distractor_table(rows)),
        "## What it cost",
        "Processor time of the training steps alone, on one thread, and floating-point operations by the formula of"
        " [training.md](training.md); the encoder's features are computed beforehand.",
        as_markdown(cost_table(rows)),
    ]
    return "\n\n".join(parts) + "\n"


def accuracy_table(rows: Sequence[Row], part: str, sizes: Sequence[int]) -> Table:
    """A row for each form: right answers after so many samples, samples to 90 %, and their ratio to causal's."""
    table: Table = [("form", *(f"{size:,}" for size in sizes), "samples to 90 %", f"times {AGAINST}")]
    for form in _shown(rows):
        cells = [_percent(mean(rows, form, answered(part, size))) for size in sizes]
        table.append((form, *cells, _samples_to(rows, form, part), _times(rows, form, part)))
    guessed = _percent(mean(rows, rows[0]["form"], lambda row: row["commonest"][part]))
    return [*table, ("the commonest answer of each kind", *[guessed] * len(sizes), "-", "-")]


def samples_table(rows: Sequence[Row]) -> Table:
    """A row for each form: samples to 90 % in each part, and their ratio to causal's."""
    parts = _parts(rows[0]["settings"])
    table: Table = [("form", *(head for _, title in parts for head in (title, f"times {AGAINST}")))]
    for form in _shown(rows):
        cells = []
        for part, _ in parts:
            cells += [_samples_to(rows, form, part), _times(rows, form, part)]
        table.append((form, *cells))
    return table


def kind_table(rows: Sequence[Row]) -> Table:
    """A row for each kind of question, after all samples."""
    kinds = sorted({kind for row in rows for kind in row["asked"][-1]["right"]} - {"overall"})
    return _by_form(rows, "kind", [(kind, answered("dialogues", None, kind)) for kind in kinds])


def distractor_table(rows: Sequence[Row]) -> Table:
    """A row for each number of other images."""

    def share(count: str) -> Measure:
        return lambda row: row["among_others"][count][0] / row["among_others"][count][1]

    counts = list(rows[0]["among_others"])
    return _by_form(rows, "other images", [(count, share(count)) for count in counts])


def cost_table(rows: Sequence[Row]) -> Table:
    """Seconds and operations of a sample of each part, and the part of causal attention's that they are."""
    last = _parts(rows[0]["settings"])[-1][0]
    header = ("form", "s, a single image", "s, a dialogue", "GFLOP, a single image", "GFLOP, a dialogue")
    table: Table = [header]
    for form in _shown(rows):
        cells = []
        for cost, unit in (("seconds", 1.0), ("operations", 1e9)):
            for part in ("singles", last):
                found = mean(rows, form, _cost(cost, part))
                cells.append("-" if found is None else f"{found.value / unit:.3g}")
        table.append((form, *cells))
    return table


def verdicts(rows: Sequence[Row]) -> list[str]:
    """For each other form and part: whether it is certainly ahead of causal attention, or behind."""
    sentences = []
    for form in _others(rows):
        for part, title in _parts(rows[0]["settings"]):
            sizes = _three(rows[0]["settings"], part)
            found = {size: lead(rows, form, AGAINST, answered(part, size)) for size in sizes}
            said = [f"{_verdict(ahead)} after {size:,}" for size, ahead in found.items() if ahead]
            if said:
                sentences.append(f"**{form}**, {title}: {'; '.join(said)}.")
    return sentences


def _parts(plan: Row) -> list[tuple[str, str]]:
    """The parts that a training has, with their titles."""
    return [(part, title) for part, title in PARTS.items() if plan[f"asked_{part}"]]


def _verdict(ahead: Mean) -> str:
    points = f"{100 * ahead.value:+.1f} points"
    if ahead.half is None:
        return f"{points} ({ahead.n} seed{'s' * (ahead.n > 1)})"
    interval = f"({points} ± {100 * ahead.half:.1f}, {ahead.n} seeds)"
    if not ahead.is_certain:
        return f"no certain difference {interval}"
    return f"certainly {'more' if ahead.value > 0 else 'fewer'} right than {AGAINST} {interval}"


def _second_decoder(rows: Sequence[Row], name: str) -> str:
    plan = rows[0]["settings"]
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    file = f"{name}_{plan['decoder']}"
    return (
        f"The same on {DECODERS[plan['decoder']]}, a decoder of another family ([{file}.md]({file}.md)). Samples that"
        f" it took to answer 90 % right, and how many times as many as {AGAINST} attention took. Seeds: {seeds}."
        " Only the projection's rate was searched for it; the others are those of the first decoder."
    )


def _method(plan: Row, seeds: Sequence[int]) -> str:
    rates = ", ".join(f"{rate:g}" for rate in plan["rates"])
    return (
        f"{DECODERS[plan['decoder']]} as decoder, EfficientNet-Lite0 (ImageNet) as encoder, both frozen. A random"
        " projection,"
        f" the embedding (rate {plan['embedding_rate']:g}) and"
        + (
            f" adapters of rank {plan['lora']} in the decoder's attention (rate {plan['lora_rate']:g}) learn."
            if plan["lora"]
            else " a gate where there is one learn, as in a training by default."
        )
        + f" {plan['things']} things, drawn as pictograms in two styles;"
        f" questions are about a third style. A training sees {plan['asked_singles'][-1]:,} single images (*What is"
        f" this?*), then {plan['asked_names'][-1]:,} dialogues that ask what each of two or three images shows,"
        + "".join(f" then {count:,} of all kinds," for count in plan["asked_dialogues"][-1:])
        + f" each once, {plan['batch']} a step. The rates stay constant"
        f" after {plan['warmup']} steps, so that the model after N samples is that of a training of N samples, and one"
        f" run per seed gives all points. Seeds: {', '.join(map(str, seeds))}; a seed chooses samples, questions and"
        f" projection, the same for each form. The projection's learning rate is the best of {rates} by the final loss"
        f" of a short run ({plan['search_singles']} single images, {plan['search_names']} dialogues, another seed);"
        " where that is the least or the largest of them, a better one"
        f" may lie beyond. The gate's is {plan['gate_rate']:g}. An answer is right if every token, including the end"
        " of the answer, is the likeliest one."
    )


def _forms_table(rows: Sequence[Row]) -> Table:
    table: Table = [
        ("form", "attention", "image layers", "gate", "summary", "learning rate", "loss at step 1")
    ]
    for name in _shown(rows):
        form = FORMS[name]
        first = mean(rows, name, lambda row: row["losses"][0])
        rate = next(row["rate"] for row in rows if row["form"] == name)
        choices = (form.attention, form.image_layers, form.image_gate, form.image_summary)
        table.append((name, *choices, f"{rate:g}", f"{first.value:.1f}" if first else "-"))
    return table


def _by_form(rows: Sequence[Row], heading: str, measures: Sequence[tuple[str, Measure]]) -> Table:
    shown = _shown(rows)
    table: Table = [(heading, *shown)]
    return table + [
        (name, *(_percent(mean(rows, form, measure)) for form in shown)) for name, measure in measures
    ]


def _cost(name: str, part: str) -> Measure:
    """Of a sample of a part."""

    def measure(row: Row) -> float:
        last = [each for each in row["asked"] if each["part"] == part][-1]
        before = [each[name] for each in row["asked"] if each[part] == 0]
        return (last[name] - max(before, default=0)) / last[part]

    return measure


def _samples_to(rows: Sequence[Row], form: str, part: str) -> str:
    reached = by_seed(rows, form, log_samples_to(part))
    of = f"{len(reached)} of {sum(row['form'] == form for row in rows)}"
    return f"{math.exp(sum(reached.values()) / len(reached)):,.0f} ({of})" if reached else f"- ({of})"


def _times(rows: Sequence[Row], form: str, part: str) -> str:
    """How many times as many samples as causal attention it took."""
    if form == AGAINST:
        return "1"
    logarithm = lead(rows, form, AGAINST, log_samples_to(part))
    if logarithm is None:
        return "-"
    low, high = (logarithm.value + side * (logarithm.half or 0) for side in (-1, 1))
    value = f"{math.exp(logarithm.value):.2f}"
    return value if logarithm.half is None else f"{value} ({math.exp(low):.2f} to {math.exp(high):.2f})"


def _three(plan: Row, part: str) -> list[int]:
    """Of the numbers of samples after which a part is asked the last, and those nearest to its half and quarter."""
    sizes = plan[f"asked_{part}"]
    last = sizes[-1]
    return sorted({min(sizes, key=lambda size: abs(size - last / part)) for part in (4, 2, 1)})


def _shown(rows: Sequence[Row]) -> list[str]:
    return [name for name in FORMS if any(row["form"] == name for row in rows)]


def _others(rows: Sequence[Row]) -> list[str]:
    return [name for name in _shown(rows) if name != AGAINST]


def _percent(mean: Mean | None) -> str:
    if mean is None:
        return "-"
    value = f"{100 * mean.value:.1f}"
    return f"{value} %" if mean.half is None else f"{value} ± {100 * mean.half:.1f} %"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the chart, a PNG of 1,680 x 600 pixels: right answers against samples, a line for each form.

    A panel for each part of the training; means over seeds, with their 95 % intervals as bands.
    """
    from matplotlib.figure import Figure  # here: it takes a second to import

    figure = Figure(figsize=(14, 5), dpi=120, layout="constrained")
    forms = _shown(rows)
    parts = _parts(rows[0]["settings"])
    for axes, (part, title) in zip(figure.subplots(1, len(parts), sharey=True), parts, strict=True):
        for place, form in enumerate(forms):
            sizes = rows[0]["settings"][f"asked_{part}"]
            known = {size: mean(rows, form, answered(part, size)) for size in sizes}
            known = {size: value for size, value in known.items() if value is not None}
            middle = [100 * each.value for each in known.values()]
            halves = [100 * (each.half or 0) for each in known.values()]
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
