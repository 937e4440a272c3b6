"""Puts a run's report into its folder: curves.png and summary.md."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from training.checkpointing.folders import TRAINER_STATE
from training.extension import Extension
from training.run_report.curves import draw_curves
from training.run_report.history import History
from training.run_report.summary import accuracy_table, as_markdown, as_text, dataset_table, run_table
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
