"""Trains and evaluates one cell through the pipeline that everybody uses: run_tiny.sh, then eval.batch_generation."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from helper.comparison.cells import ROOT, SCRIPTS, Cell, ComparisonError, Outcome
from training.checkpoints import TRAINER_STATE

LOG = "log.txt"
_SHOWN = 5  # last lines of a failed step's output


def train_and_score(cell: Cell, data: Path, folder: Path) -> Outcome:
    """Train in a folder, evaluate on the world's held-out dialogues, and leave curves, summary and answers there.

    The weights are removed again. Raises `ComparisonError` where a step fails; its output is in log.txt.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begun = time.monotonic()
    environment = {
        "ATTENTION": cell.attention,
        "SEED": str(cell.seed),
        "DATASET_SAMPLES": " ".join(map(str, shared_out(cell.samples, data))),
        "DATA_PATH": str(data),
        "OUTPUT_DIR": str(folder),
        "SAVE_STRATEGY": os.environ.get("SAVE_STRATEGY", "no"),
    }
    _run(cell, folder, ["bash", str(SCRIPTS / "run_tiny.sh")], environment)
    results = folder / "evaluation"
    command = [sys.executable, "-m", "eval.batch_generation", "--checkpoint_path", str(folder / "final")]
    command += ["--eval_data", str(data / "eval" / "miniature.json"), "--output_filename", str(results)]
    command += ["--batch_size", "50", "--max_new_tokens", "8"]
    _run(cell, folder, command, {})
    outcome = _read(cell, results.with_suffix(".json"), folder / TRAINER_STATE, time.monotonic() - begun)
    for weights in (folder / "final", folder / "best", *folder.glob("checkpoint-*")):
        shutil.rmtree(weights, ignore_errors=True)
    return outcome


def records_in(data: Path) -> tuple[int, int]:
    """How many records the world has for llava and for llava_dial."""
    size = json.loads((data / "world.json").read_text(encoding="utf-8"))
    return size["descriptions"] + size["reasoning"], size["conversations"]


def shared_out(samples: int, data: Path) -> tuple[int, int]:
    """Of so many records those of llava and of llava_dial, in the proportion that the world has.

    Raises `ComparisonError` where the world has not so many.
    """
    single, dialogues = records_in(data)
    if not 2 <= samples <= single + dialogues:
        raise ComparisonError(f"--samples {samples}: the world in {data} has {single + dialogues:,} records")
    first = min(max(round(samples * single / (single + dialogues)), 1), samples - 1)
    return first, samples - first


def _run(cell: Cell, folder: Path, command: list[str], environment: dict[str, str]) -> None:
    with (folder / LOG).open("a") as log:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
        )
    if done.returncode:
        said = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN:]
        raise ComparisonError(
            f"{cell} failed with exit code {done.returncode}: {' / '.join(said)} ({folder / LOG})"
        )


def _read(cell: Cell, results: Path, state: Path, seconds: float) -> Outcome:
    scores = json.loads(results.read_text(encoding="utf-8"))
    history = json.loads(state.read_text(encoding="utf-8"))
    evaluations = [line["eval_loss"] for line in history["log_history"] if "eval_loss" in line]
    return Outcome(
        cell=cell,
        accuracy=scores["overall"]["accuracy"],
        majority=scores["overall"]["majority_accuracy"],
        kinds={kind: score["accuracy"] for kind, score in scores["kinds"].items()},
        questions=scores["overall"]["count"],
        evaluation_loss=evaluations[-1] if evaluations else None,
        steps=history["global_step"],
        seconds=round(seconds, 1),
    )
