"""A run's log lines as tables, whole also where the run was interrupted and resumed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training.checkpointing.folders import TRAINER_STATE, resumable_checkpoints
from utils.commands import UsageError


class History:
    """The log lines of a run, as transformers' `TrainerState.log_history` has them, and how long it is to be.

    `training` and `evaluation` have a row for each line, by step.
    """

    def __init__(self, log_history: Sequence[Mapping[str, Any]], max_steps: int) -> None:
        self.training = _table([line for line in log_history if "loss" in line])
        self.evaluation = _table([line for line in log_history if "eval_loss" in line])
        self.max_steps = max_steps

    @classmethod
    def read(cls, output_dir: str | Path) -> "History":
        """Of the run that writes into a folder: up to its end, else to its newest checkpoint.

        Raises `UsageError` where there is none.
        """
        folders = [Path(output_dir), *resumable_checkpoints(Path(output_dir))[-1:]]
        files = [folder / TRAINER_STATE for folder in folders if (folder / TRAINER_STATE).is_file()]
        if not files:
            raise UsageError(
                f"{output_dir}: no checkpoint of a run in this folder; give an --output_dir of training"
            )
        states = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        furthest = max(states, key=lambda state: state["global_step"])
        return cls(furthest["log_history"], furthest["max_steps"])

    def series(self, key: str) -> pd.Series:
        """The finite values of a measure by step, of the lines that have it; `eval_...` are evaluation's."""
        table = self.evaluation if key.startswith("eval_") else self.training
        values = table.get(key, pd.Series(dtype=float)).astype(float)
        return values[np.isfinite(values)]

    def names(self, prefix: str) -> list[str]:
        """What follows `prefix` in the names of measures, training's and evaluation's, as it first appears."""
        keys = [key.removeprefix("eval_") for table in (self.training, self.evaluation) for key in table]
        return list(dict.fromkeys(key.removeprefix(prefix) for key in keys if key.startswith(prefix)))

    @property
    def last_step(self) -> int:
        """The last step that a line is of."""
        return max([0, *self.training.index, *self.evaluation.index])

    @property
    def seconds(self) -> pd.Series:
        """The time spent in the training steps of each line; evaluation and saving aside."""
        each = self.training.get("step_seconds", pd.Series(0.0, self.training.index)).fillna(0)
        return each * np.diff(self.training.index, prepend=0)

    def total(self, what: str) -> float:
        """How many tokens, supervised_tokens or images were trained on, padding aside."""
        return float((self.seconds * self.series(f"{what}_per_second")).sum())


def _table(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    columns = dict.fromkeys(["step", "epoch", *(key for line in lines for key in line)])
    return pd.DataFrame(lines, columns=list(columns)).set_index("step")


def smoothed(series: pd.Series) -> pd.Series:
    """Means over a window around each value, a twentieth of the series wide."""
    return series.rolling(2 * (len(series) // 40) + 1, center=True, min_periods=1).mean()
