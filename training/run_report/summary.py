"""A run's report: curves.png and summary.md, with tables of what was trained on, of losses and speed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from training.checkpointing.folders import TRAINER_STATE
from training.extension import Extension
from training.run_report.curves import draw_curves
from training.run_report.history import History
from utils.atomic import atomic_write
from utils.distributed import get_logger, is_main_process

if TYPE_CHECKING:
    import pandas as pd

logger = get_logger(__name__)

CURVES, SUMMARY = "curves.png", "summary.md"
Table = list[tuple[str, ...]]


class RunReport(Extension):
    """Closes the run: keeps the whole history beside the checkpoints, and reports on it."""

    def finish(self) -> None:
        if is_main_process():
            state, output_dir = self.context.state, self.context.args.output_dir
            atomic_write(Path(output_dir, TRAINER_STATE), json.dumps(asdict(state), indent=2, sort_keys=True))
            write_report(History(state.log_history, state.max_steps), output_dir)


def write_report(history: History, output_dir: str | Path) -> None:
    """Draw and write, and show the tables as log lines; for the main process."""
    folder = Path(output_dir)
    name = folder.resolve().name
    draw_curves(history, folder / CURVES, name)
    parts = [f"# Training run {name}", as_markdown([("", ""), *run_table(history)])]
    if datasets := dataset_table(history):
        parts += ["## Loss of each dataset", as_markdown(datasets)]
    if answers := accuracy_table(history):
        parts += ["## Right answers to held-out questions", as_markdown(answers)]
    text = "\n\n".join(parts)
    for line in text.splitlines():
        logger.info("%s", line)
    atomic_write(folder / SUMMARY, f"{text}\n\n![Loss, learning rate and speed]({CURVES})\n".encode())


def run_table(history: History) -> Table:
    """What can be said of the run as a whole: pairs of a name and a value; measures that no line has are left out."""
    epochs = max([0.0, *history.training["epoch"].dropna(), *history.evaluation["epoch"].dropna()])
    tokens, supervised, images = map(history.total, ("tokens", "supervised_tokens", "images"))
    seconds = history.seconds.sum()
    rows: Table = [
        ("steps", f"{history.last_step:,} of {history.max_steps:,}, {epochs:.2f} epochs"),
        ("time in steps", _duration(seconds)),
        ("trained on", f"{tokens:,.0f} tokens ({supervised:,.0f} supervised), {images:,.0f} images"),
        ("training loss", _first_to_last(history.series("loss"))),
    ]
    evaluation, accuracy = history.series("eval_loss"), history.series("eval_accuracy")
    if len(evaluation):
        at = f", best {evaluation.min():.4f} at step {evaluation.idxmin():,}"
        rows.append(("evaluation loss", _first_to_last(evaluation) + at))
    if len(accuracy):
        at = f", best {accuracy.max():.1%} at step {accuracy.idxmax():,}"
        rows.append(("answers right", _first_to_last(accuracy, ".1%") + at))
        generating = history.series("eval_accuracy_seconds").sum()
        share = f", {generating / seconds:.1%} of the time in steps" if seconds else ""
        rows.append(("generating answers", f"{generating:.1f} s{share}"))
    if "step_seconds" in history.training:
        median = history.training.median(numeric_only=True)
        speed = [
            f"{median[f'{what}_per_second']:,.{digits}f} {what.replace('_', ' ')}/s"
            for what, digits in (("tokens", 0), ("supervised_tokens", 0), ("images", 1))
        ]
        rows.append(("speed, median", ", ".join([*speed, f"{median['step_seconds']:.2f} s a step"])))
        waiting, memory = history.series("data_wait_share"), history.series("peak_memory_gib")
        rows.append(("waiting for data", f"{waiting.median():.1%} median, {waiting.max():.1%} most"))
        rows.append(("peak memory of a process", f"{memory.max():.2f} GiB"))
    if len(mfu := history.series("mfu")):
        rows.append(("MFU", f"{mfu.median():.1%} median, {mfu.max():.1%} best"))
    return rows


def dataset_table(history: History) -> Table:
    """The losses of each dataset, a heading first; empty where no dataset has one."""
    rows: Table = []
    for name in history.names("loss/"):
        training, evaluation = history.series(f"loss/{name}"), history.series(f"eval_loss/{name}")
        best = f"{evaluation.min():.4f}" if len(evaluation) else "-"
        ends = [_at(series, place) for series in (training, evaluation) for place in (0, -1)]
        rows.append((name, *ends[:3], best, ends[3]))
    heading = ("dataset", "training: first", "last", "evaluation: first", "best", "last")
    return [heading, *rows] if rows else []


def accuracy_table(history: History) -> Table:
    """The share of right answers of each kind of question or dataset, a heading first; empty where there is none."""
    rows: Table = []
    for name in sorted(history.names("accuracy/")):
        values = history.series(f"eval_accuracy/{name}")
        rows.append((name, _at(values, 0, ".1%"), f"{values.max():.1%}", _at(values, -1, ".1%")))
    return [("answers right", "first", "best", "last"), *rows] if rows else []


def as_markdown(table: Table) -> str:
    """A table whose first row is its heading; numbers, from the third column on, to the right."""
    heading, *rows = table
    border = ("---",) + ("---:",) * (len(heading) - 1) if len(heading) > 2 else ("---", "---")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, border, *rows))


def _first_to_last(series: "pd.Series", form: str = ".4f") -> str:
    return f"{_at(series, 0, form)} -> {_at(series, -1, form)}"


def _at(series: "pd.Series", place: int, form: str = ".4f") -> str:
    return f"{series.iloc[place]:{form}}" if len(series) else "-"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
