"""A run's log lines as series, whole also where the run was interrupted and resumed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.checkpointing.folders import TRAINER_STATE, resumable_checkpoints
from utils.commands import UsageError

_OF_DATASET = "loss/"
_OF_ANSWERS = "eval_accuracy/"


@dataclass(frozen=True, eq=False)
class Series:
    """Values over steps, n of each."""

    steps: np.ndarray  # [n]
    values: np.ndarray  # [n]

    def __len__(self) -> int:
        return len(self.steps)

    def smoothed(self) -> np.ndarray:
        """Means [n] over a window around each value, a twentieth of the series wide and narrower at its ends.

        So it keeps up with a steep fall, and begins and ends where the series does.
        """
        place = np.arange(len(self))
        reach = np.minimum(np.minimum(place, len(self) - 1 - place), len(self) // 40)
        sums = np.concatenate([[0.0], np.cumsum(self.values)])
        return (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)


@dataclass(frozen=True, eq=False)
class History:
    """The log lines of a run, as transformers' `TrainerState.log_history` has them, and how long it is to be."""

    training: tuple[Mapping[str, Any], ...]
    evaluation: tuple[Mapping[str, Any], ...]
    max_steps: int

    @classmethod
    def of(cls, log_history: Sequence[Mapping[str, Any]], max_steps: int) -> "History":
        """Sort the lines of a trainer's state."""
        return cls(
            tuple(line for line in log_history if "loss" in line),
            tuple(line for line in log_history if "eval_loss" in line),
            max_steps,
        )

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
        return cls.of(furthest["log_history"], furthest["max_steps"])

    def series(self, key: str) -> Series:
        """The values of a measure, of those lines that have it; `eval_...` are evaluation's.

        Steps that were skipped, because their loss was no number, have none.
        """
        lines = self.evaluation if key.startswith("eval_") else self.training
        found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        found = [(step, value) for step, value in found if np.isfinite(value)]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return Series(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))

    @property
    def datasets(self) -> list[str]:
        """The datasets that have a loss of their own, in the order of their first appearance."""
        names: dict[str, None] = {}
        for line in (*self.training, *self.evaluation):
            for key in line:
                name = key.removeprefix("eval_")
                if name.startswith(_OF_DATASET):
                    names[name.removeprefix(_OF_DATASET)] = None
        return list(names)

    @property
    def answered(self) -> list[str]:
        """The kinds of questions, or datasets, whose generated answers were checked, in alphabetical order."""
        names = {key for line in self.evaluation for key in line if key.startswith(_OF_ANSWERS)}
        return [name.removeprefix(_OF_ANSWERS) for name in sorted(names)]

    @property
    def last_step(self) -> int:
        """The last step that a line is of."""
        return max((line["step"] for line in (*self.training, *self.evaluation)), default=0)

    @property
    def epochs(self) -> float:
        """How many passes over the data these steps were."""
        return max((line.get("epoch") or 0.0 for line in (*self.training, *self.evaluation)), default=0.0)

    @property
    def seconds(self) -> float:
        """The time spent in training steps; evaluation and saving aside."""
        return float(sum(self._over_steps("step_seconds", per_second=False)))

    def total(self, what: str) -> float:
        """How many tokens, supervised_tokens or images were trained on, padding aside."""
        return float(sum(self._over_steps(f"{what}_per_second", per_second=True)))

    def _over_steps(self, key: str, per_second: bool) -> list[float]:
        parts, before = [], 0
        for line in self.training:
            steps, before = line["step"] - before, line["step"]
            seconds = line.get("step_seconds", 0.0)
            parts.append(steps * (line.get(key, 0.0) * seconds if per_second else seconds))
        return parts
