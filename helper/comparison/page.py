"""The page that a comparison writes: what was done, what came of it, and what may be said."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from helper.comparison.cells import Outcome
from helper.comparison.statistics import Mean, accuracy, lead
from training.run_report.summary import as_markdown

ATTENTIONS = ("mmca", "causal", "cross")


def page(outcomes: Sequence[Outcome], settings: Mapping[str, Any], picture: str) -> str:
    """Markdown; of unfinished grids what is there."""
    seeds = sorted({outcome.cell.seed for outcome in outcomes})
    first = outcomes[0]
    kinds = sorted(first.kinds)
    values = ", ".join(
        f"{name.lower()} {str(value).removeprefix('$ROOT/')}"
        for name, value in settings.items()
        if not name.startswith("digest")
    )
    parts = [
        "# Attentions compared in the miniature world",
        "Written by `make compare`; every number is of a training with `training/training_scripts/run_tiny.sh` and an"
        " evaluation with `eval.batch_generation`.",
        f"![Accuracy against training records]({picture})",
        "## Accuracy",
        f"Share of {first.questions:,} questions about held-out pictures that are answered right: {_of_seeds(seeds)}."
        f" Always giving the commonest answer of a question's kind scores {first.majority:.1%}. A seed chooses"
        " the records, their order and what the new weights begin as; it is the same choice for each attention.",
        as_markdown(accuracy_table(outcomes)),
        "## What may be said",
        "\n".join(f"- {sentence}" for sentence in verdicts(outcomes)),
        "These settings were found while working on MMCA; the other attentions were not given settings of their own.",
        "## By kind of question",
        f"After {_largest(outcomes):,} records:",
        as_markdown(kind_table(outcomes, kinds)),
        "## Settings",
        f"{values}. Steps of the optimizer: {_steps(outcomes)}.",
        "Again, with those of these values that are not run_tiny.sh's own in the environment, in capitals:"
        f" `python -m helper.compare --samples {_spaced(outcome.cell.samples for outcome in outcomes)}"
        f" --seeds {_spaced(seeds)}`.",
    ]
    return "\n\n".join(parts) + "\n"


def accuracy_table(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """A row for each number of records: each attention's accuracy, and what MMCA is ahead of the others."""
    shown = _shown(outcomes)
    others = [name for name in shown if name != "mmca"] if "mmca" in shown else []
    rows = [("records", *shown, *(f"mmca less {name}" for name in others))]
    for size in sorted({outcome.cell.samples for outcome in outcomes}):
        cells = [_percent(accuracy(outcomes, name, size)) for name in shown]
        leads = [_percent(lead(outcomes, "mmca", name, size), signed=True) for name in others]
        rows.append((f"{size:,}", *cells, *leads))
    return rows


def kind_table(outcomes: Sequence[Outcome], kinds: Sequence[str]) -> list[tuple[str, ...]]:
    """A row for each kind of question, after the largest number of records."""
    shown, size = _shown(outcomes), _largest(outcomes)
    rows = [("kind", *shown)]
    for kind in kinds:
        rows.append((kind, *(_percent(accuracy(outcomes, name, size, kind)) for name in shown)))
    return rows


def verdicts(outcomes: Sequence[Outcome]) -> list[str]:
    """A sentence for each pair with MMCA and each number of records: who is ahead, if anybody certainly is."""
    sentences = []
    for other in [name for name in _shown(outcomes) if name != "mmca"]:
        for size in sorted({outcome.cell.samples for outcome in outcomes}):
            ahead = lead(outcomes, "mmca", other, size)
            if ahead is None:
                continue
            points = f"{100 * abs(ahead.value):.1f} points"
            if ahead.half is None:
                verdict = f"mmca and {other} are {points} apart in the one seed there is, which says nothing certain"
            elif not ahead.is_certain:
                verdict = f"no certain difference between mmca and {other} ({_percent(ahead, signed=True)})"
            else:
                winner, loser = ("mmca", other) if ahead.value > 0 else (other, "mmca")
                half = 100 * ahead.half
                verdict = f"{winner} answers {points} more right than {loser} (± {half:.1f}, {ahead.n} seeds in pairs)"
            sentences.append(f"{size:,} records: {verdict}.")
    return sentences


def _spaced(numbers: Iterable[int]) -> str:
    return " ".join(map(str, sorted(set(numbers))))


def _of_seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"of the one seed {seeds[0]}"
    return f"mean over the seeds {', '.join(map(str, seeds))} with its 95 % interval (Student's t)"


def _steps(outcomes: Sequence[Outcome]) -> str:
    """How many each number of records made: few records also mean few steps."""
    made: dict[int, set[int]] = {}
    for outcome in outcomes:
        made.setdefault(outcome.cell.samples, set()).add(outcome.steps)
    spans = ((size, min(steps), max(steps)) for size, steps in sorted(made.items()))
    return ", ".join(
        f"{least if least == most else f'{least} to {most}'} after {size:,} records"
        for size, least, most in spans
    )


def _shown(outcomes: Sequence[Outcome]) -> list[str]:
    return [name for name in ATTENTIONS if any(outcome.cell.attention == name for outcome in outcomes)]


def _largest(outcomes: Sequence[Outcome]) -> int:
    return max(outcome.cell.samples for outcome in outcomes)


def _percent(mean: Mean | None, signed: bool = False) -> str:
    if mean is None:
        return "-"
    value = f"{100 * mean.value:+.1f}" if signed else f"{100 * mean.value:.1f}"
    return f"{value} %" if mean.half is None else f"{value} ± {100 * mean.half:.1f} %"
