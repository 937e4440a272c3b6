"""Many trainings one after the other in the same processes, since starting Python takes longer than a tiny run.

`python -m tests.training.checkpointing.many_runs PLAN`: a JSON list of steps, each a training's command line
{"train": [...]}, {"copy": folder, "to": folder, "until": step}: a run's folder as it was after that step, or
{"damage": file}. A training with "narrow": rank cannot write files above 1000 bytes in that process during its first
save; one that is "refused" may be.
"""

import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.arguments.command_line import parse_flags, training_arguments
from training.checkpointing.folders import ResumeError, resumable_checkpoints
from training.checkpointing.writer import CheckpointWriter
from training.extension import always
from training.run import train
from utils.distributed import configure_logging, decided_by_main, rank, shut_down


def copy_until(source: Path, target: Path, until: int) -> None:
    shutil.copytree(source, target)
    for folder in [*resumable_checkpoints(target), target / "final"]:
        if folder.name == "final" or int(folder.name.split("-")[1]) > until:
            shutil.rmtree(folder)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@contextmanager
def narrow_disk(where: int | None) -> Iterator[None]:
    """The kernel refuses what does not fit, as on a full disk, in one process and for one save."""
    save = CheckpointWriter.save

    def first(self: CheckpointWriter, *how: bool) -> None:
        CheckpointWriter.save = save
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank() == where:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
        try:
            save(self, *how)
            self.finish()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    if where is not None:
        CheckpointWriter.save = first
    try:
        yield
    finally:
        CheckpointWriter.save = save


def main(plan: Path) -> None:
    configure_logging()
    for step in json.loads(plan.read_text()):
        begun = time.monotonic()
        if "train" in step:
            arguments = training_arguments(*parse_flags(step["train"]))
            with narrow_disk(step.get("narrow")):
                try:
                    train(*arguments, always())
                except ResumeError as error:
                    if not step.get("refused"):
                        raise
                    print(error)
        elif "damage" in step:
            decided_by_main(lambda path=Path(step["damage"]): flip_a_bit(path))
        else:
            source, target = Path(step["copy"]), Path(step["to"])
            decided_by_main(lambda s=source, t=target, until=step["until"]: copy_until(s, t, until))
        print(f"took {time.monotonic() - begun:.1f} s", flush=True)
    shut_down()


if __name__ == "__main__":
    main(Path(sys.argv[-1]))  # the launcher puts --local_rank before
