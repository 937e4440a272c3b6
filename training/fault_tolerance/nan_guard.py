"""Losses that are no numbers: the step is dropped before the optimizer, and its samples are named.

One NaN in a gradient makes NaN of every weight that learns. So no weight changes in a step with such a loss on
any process. Training ends there, or goes on with the next step while no more than `--max_skipped_steps` were
dropped.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from training.exit_codes import TrainingDivergedError, last_checkpoint
from utils.atomic import BestEffort, atomic_write
from utils.data.bad_records import Origin, RecordPlace, origin_at
from utils.distributed import everyone, get_logger, is_main_process, rank

logger = get_logger(__name__)

SKIPPED_STEPS = "skipped_steps.jsonl"
"""The list's name in the output folder."""

_NAMED = 5  # samples in a message; the file has all


@dataclass(frozen=True)
class BadLoss:
    """Samples of one process whose loss was no number: the records, each with its dataset, file and index."""

    rank: int
    loss: float
    samples: tuple[RecordPlace, ...]


class NanGuard:
    """Keeps what a step's batches cost until all processes agree that it was numbers."""

    def __init__(self, output_dir: str | Path, max_skipped: int) -> None:
        self.output_dir, self.max_skipped = Path(output_dir), max_skipped
        self.skipped = 0
        self._lines: list[str] = []
        self._list = BestEffort()
        self._batches: list[tuple[torch.Tensor, torch.Tensor, Sequence[Origin]]] = []  # as `note` has them

    @property
    def path(self) -> Path:
        """Where the skipped steps are listed, a JSON object a line."""
        return self.output_dir / SKIPPED_STEPS

    def restore(self, step: int) -> None:
        """Take over the list of an earlier part of the same run, up to the step that it goes on from."""
        lines = self.path.read_text().splitlines() if self.path.is_file() and step else []
        self._lines = [line for line in lines if json.loads(line)["step"] <= step]
        self.skipped = len(self._lines)

    def note(self, loss: torch.Tensor, token_losses: torch.Tensor, origins: Sequence[Origin]) -> torch.Tensor:
        """Keep a batch until the step is over. Returns a scalar on the device: whether its loss is no number."""
        self._batches.append((loss.detach(), token_losses, origins))
        return ~torch.isfinite(loss.detach())

    def clear(self) -> None:
        """Begin a new step."""
        self._batches.clear()

    def skip(self, step: int, what: str = "loss") -> None:
        """Note that `step` changes no weight; all processes call.

        Raises `TrainingDivergedError` in all of them where `max_skipped` steps were dropped before.
        """
        found = [bad for each in everyone(self._bad()) for bad in each]
        value = found[0].loss if found else float("nan")
        if is_main_process():
            losses = [{**asdict(bad), "loss": str(bad.loss)} for bad in found]  # JSON has no word for NaN
            self._lines.append(json.dumps({"step": step, "losses": losses}))
            self._write()
        self.skipped += 1
        what = f"the {what} is {value} at step {step}{_described(found)}"
        if self.skipped > self.max_skipped:
            raise TrainingDivergedError(
                f"{what}{f', after {self.skipped - 1} that were skipped' if self.max_skipped else ''}; no weight"
                f" was changed by it, and {last_checkpoint(self.output_dir)}. Look at these records, lower"
                " --learning_rate, or let some such steps pass by --max_skipped_steps"
            )
        logger.info("%s: skipped, %d of at most %d", what, self.skipped, self.max_skipped)

    def catch_up(self) -> None:
        """Write the list where the disk did not take it."""
        if self._list.is_due:
            self._write()

    def _write(self) -> None:
        with self._list.writing(self.path):
            atomic_write(self.path, "".join(f"{line}\n" for line in self._lines))

    def _bad(self) -> list[BadLoss]:
        found = []
        for loss, token_losses, origins in self._batches:
            if torch.isfinite(loss):
                continue
            tokens = (~torch.isfinite(token_losses)).nonzero().flatten().tolist()
            guilty = {origin_at(origins, token): None for token in tokens} if origins else {}
            samples = dict.fromkeys(place for origin in guilty or origins for place in origin.places)
            found.append(BadLoss(rank(), loss.item(), tuple(samples)))
        return found


def _described(found: Sequence[BadLoss]) -> str:
    samples = [(bad.rank, place) for bad in found for place in bad.samples]
    if not samples:
        return ""
    named = [f"{place} (dataset {place.dataset}, rank {number})" for number, place in samples[:_NAMED]]
    more = f" and {len(samples) - _NAMED} more, see {SKIPPED_STEPS}" if len(samples) > _NAMED else ""
    return f", with {', '.join(named)}{more}"
