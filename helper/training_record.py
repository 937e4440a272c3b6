"""What is known of a checkpoint's training, for its model card."""

import json
from pathlib import Path

from training.checkpointing.folders import RUN, TRAINER_STATE
from training.checkpointing.run_record import Run


def training_record(folder: Path) -> str:
    """A section of a model card, in Markdown; empty where the folder does not say (best and final do not)."""
    if not (folder / TRAINER_STATE).is_file() or not (folder / RUN).is_file():
        return ""
    state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
    run = Run.load(folder)
    rows = [
        ("steps", f"{state['global_step']:,} of {state['max_steps']:,}"),
        ("epochs", f"{state['epoch']:.2f}"),
        ("conversations (or packed rows) a step", f"{run.global_batch:,}"),
        ("processes", f"{run.processes}, ZeRO {run.zero_stage}, {run.precision}"),
    ]
    for name, key in (("training loss", "loss"), ("evaluation loss", "eval_loss")):
        values = [line[key] for line in state["log_history"] if key in line]
        if values:
            rows.append((name, f"{values[0]:.4f} at first, {values[-1]:.4f} at last"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"\n## How it was trained\n\n| | |\n|---|---|\n{table}\n"
