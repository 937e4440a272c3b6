"""A run's report: curves.png and summary.md, with tables of what was trained on, of losses and speed."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.checkpointing.folders import TRAINER_STATE
from training.extension import Extension
from training.run_report.curves import draw_curves
from training.run_report.history import History, Series
from utils.atomic import atomic_write
from utils.distributed import get_logger, is_main_process

if TYPE_CHECKING:
    from transformers import TrainerState

logger = get_logger(__name__)

CURVES, SUMMARY = "curves.png", "summary.md"


class RunReport(Extension):
    """Closes the run."""

    def finish(self) -> None:
        if is_main_process():
            close_run(self.context.state, self.context.args.output_dir)


def close_run(state: "TrainerState", output_dir: str | Path) -> None:
    """Keep the whole history beside the checkpoints, and report on it; for the main process."""
    atomic_write(Path(output_dir, TRAINER_STATE), json.dumps(asdict(state), indent=2, sort_keys=True))
    write_report(History.of(state.log_history, state.max_steps), output_dir)


def write_report(history: History, output_dir: str | Path) -> None:
    """Draw and write, and show the tables as log lines; for the main process."""
    folder = Path(output_dir)
    name = folder.resolve().name
    draw_curves(history, folder / CURVES, name)
    run, datasets, answers = run_table(history), dataset_table(history), accuracy_table(history)
    parts = [f"# Training run {name}", as_markdown([("", ""), *run])]
    if datasets:
        parts += ["## Loss of each dataset", as_markdown(datasets)]
    if answers:
        parts += ["## Right answers to held-out questions", as_markdown(answers)]
    parts.append(f"![Loss, learning rate and speed]({CURVES})")
    atomic_write(folder / SUMMARY, ("\n\n".join(parts) + "\n").encode())
    for table in filter(None, (run, datasets, answers)):
        for line in ([] if table is run else [""]) + as_text(table):
            logger.info("%s", line)


Table = list[tuple[str, ...]]


def run_table(history: History) -> Table:
    """What can be said of the run as a whole: pairs of a name and a value."""
    evaluation = history.series("eval_loss")
    rows: Table = [
        ("steps", f"{history.last_step:,} of {history.max_steps:,}, {history.epochs:.2f} epochs"),
        ("time in steps", _duration(history.seconds)),
        ("trained on", _trained_on(history)),
        ("training loss", _first_to_last(history.series("loss"))),
    ]
    if len(evaluation):
        best = int(evaluation.values.argmin())
        at = f", best {evaluation.values[best]:.4f} at step {int(evaluation.steps[best]):,}"
        rows.append(("evaluation loss", _first_to_last(evaluation) + at))
    accuracy, seconds = history.series("eval_accuracy"), history.series("eval_accuracy_seconds").values.sum()
    if len(accuracy):
        best = int(accuracy.values.argmax())
        first, highest, last = (f"{accuracy.values[place]:.1%}" for place in (0, best, -1))
        at = f"best {highest} at step {int(accuracy.steps[best]):,}"
        rows.append(("answers right", f"{first} -> {last}, {at}"))
        share = f", {seconds / history.seconds:.1%} of the time in steps" if history.seconds else ""
        rows.append(("generating answers", f"{seconds:.1f} s{share}"))
    rates = (("tokens", 0), ("supervised_tokens", 0), ("images", 1))
    speed = [
        f"{_median(history, f'{what}_per_second'):,.{digits}f} {what.replace('_', ' ')}/s"
        for what, digits in rates
    ]
    rows.append(("speed, median", ", ".join([*speed, f"{_median(history, 'step_seconds'):.2f} s a step"])))
    waiting, memory = history.series("data_wait_share"), history.series("peak_memory_gib")
    if len(waiting):
        median = _median(history, "data_wait_share")
        rows.append(("waiting for data", f"{median:.1%} median, {waiting.values.max():.1%} most"))
        rows.append(("peak memory of a process", f"{memory.values.max():.2f} GiB"))
    utilisation = history.series("mfu")
    if len(utilisation):
        rows.append(("MFU", f"{_median(history, 'mfu'):.1%} median, {utilisation.values.max():.1%} best"))
    return rows


def dataset_table(history: History) -> Table:
    """The losses of each dataset, a heading first; empty where no dataset has one."""
    rows: Table = []
    for name in history.datasets:
        training, evaluation = history.series(f"loss/{name}"), history.series(f"eval_loss/{name}")
        cells = [_at(training, 0), _at(training, -1), _at(evaluation, 0)]
        best = f"{evaluation.values.min():.4f}" if len(evaluation) else "-"
        rows.append((name, *cells, best, _at(evaluation, -1)))
    heading = ("dataset", "training: first", "last", "evaluation: first", "best", "last")
    return [heading, *rows] if rows else []


def accuracy_table(history: History) -> Table:
    """The share of right answers of each kind of question or dataset, a heading first; empty where there is none."""
    rows: Table = []
    for name in history.answered:
        values = history.series(f"eval_accuracy/{name}").values
        rows.append((name, *(f"{value:.1%}" for value in (values[0], values.max(), values[-1]))))
    return [("answers right", "first", "best", "last"), *rows] if rows else []


def as_markdown(table: Table) -> str:
    """A table whose first row is its heading."""
    heading, *rows = table
    lines = [
        heading,
        ("---",) + ("---:",) * (len(heading) - 1) if len(heading) > 2 else ("---", "---"),
        *rows,
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def as_text(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with aligned columns, numbers to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    numbers = len(widths) > 2
    return [
        "  ".join(
            cell.rjust(width) if numbers and column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _trained_on(history: History) -> str:
    tokens, supervised, images = map(history.total, ("tokens", "supervised_tokens", "images"))
    return f"{_amount(tokens)} tokens ({_amount(supervised)} supervised), {_amount(images)} images"


def _first_to_last(series: Series) -> str:
    return f"{_at(series, 0)} -> {_at(series, -1)}"


def _at(series: Series, place: int) -> str:
    return f"{series.values[place]:.4f}" if len(series) else "-"


def _median(history: History, key: str) -> float:
    series = history.series(key)
    return float(np.median(series.values)) if len(series) else 0.0


def _amount(number: float) -> str:
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 10 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:,.0f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
