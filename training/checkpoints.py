"""The folders that training writes: resumable checkpoint-N beside best and final, each complete or not there.

checkpoint-N holds DeepSpeed's engine state without the frozen weights (`global_stepN`, `latest`), the
scheduler, the random states and the Trainer's state, and besides the trained weights in the form that loads
for chat and evaluation.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.atomic import atomic_write, remove_directory

TRAINER_STATE = "trainer_state.json"
RUN = "run.json"


class ResumeError(ValueError):
    """A checkpoint that training cannot go on from; the message is one line and says what to do."""


@dataclass(frozen=True)
class Run:
    """What must not change between writing a checkpoint and going on from it."""

    processes: int
    zero_stage: int
    precision: str

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        atomic_write(folder / RUN, json.dumps(asdict(self), indent=2))

    def check(self, folder: Path) -> None:
        """Raise `ResumeError` where the checkpoint in `folder` was written by a run of another kind."""
        written = Run(**json.loads((folder / RUN).read_text()))
        if written != self:
            raise ResumeError(
                f"{folder} was written by {written.processes} processes at ZeRO {written.zero_stage} in"
                f" {written.precision}, this run has {self.processes} at ZeRO {self.zero_stage} in"
                f" {self.precision}: start it in the same way"
            )


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after `step` optimizer steps."""
    return f"checkpoint-{step}"


def resumable_checkpoints(output_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    numbered = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and is_resumable(folder):
            numbered.append((int(match[1]), folder))
    return [folder for _, folder in sorted(numbered)]


def is_resumable(folder: Path) -> bool:
    """True where the Trainer's state, the run's description and the engine's state that `latest` names are
    there.
    """
    latest = folder / "latest"
    return (
        (folder / TRAINER_STATE).is_file()
        and (folder / RUN).is_file()
        and latest.is_file()
        and (folder / latest.read_text().strip()).is_dir()
    )


def resume_folder(output_dir: str, wanted: str | bool | None) -> Path | None:
    """The checkpoint to go on from: None for a fresh start, the newest complete one for "True", or the folder
    named.

    Raises `ResumeError` where there is none.
    """
    if wanted in (None, False, "", "False", "false"):
        return None
    if wanted in (True, "True", "true", "latest"):
        found = resumable_checkpoints(output_dir)
        if not found:
            raise ResumeError(
                f"{output_dir} holds no complete checkpoint-N: leave out --resume_from_checkpoint"
            )
        return found[-1]
    if not is_resumable(Path(wanted)):
        raise ResumeError(
            f"--resume_from_checkpoint {wanted}: no complete checkpoint; name a checkpoint-N of a run"
        )
    return Path(wanted)


def rotate(output_dir: str | Path, limit: int | None, kept: Sequence[str | None] = ()) -> None:
    """Remove the oldest checkpoints above `limit` (None: no limit), never the newest nor those in `kept`."""
    if not limit or limit < 1:
        return
    found = resumable_checkpoints(output_dir)
    safe = {str(found[-1]), *kept} if found else set()
    removable = [folder for folder in found if str(folder) not in safe]
    for folder in removable[: max(len(found) - limit, 0)]:
        remove_directory(folder)
