"""An evaluation in parts: each is kept on the disk as soon as it is answered, so that an interrupted run goes on.

Under a launcher (`torchrun --nproc_per_node 8 -m eval.batch_generation ...`) the processes share the parts out.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.dialogues import EvalDialogue
from utils import distributed
from utils.atomic import atomic_write

Answers = list[list[str | None]]
"""By dialogue and turn."""


@dataclass(frozen=True)
class Parts:
    """Where the answers of a run are kept until all are there.

    `key` stands for everything that an answer depends on: what was kept under another one is not used.
    """

    folder: Path
    key: str
    size: int

    def answer(
        self,
        dialogues: Sequence[EvalDialogue],
        run: Callable[[Sequence[EvalDialogue]], Answers],
        advance: Callable[[int], None] = lambda questions: None,
    ) -> Answers | None:
        """All answers, in the main process; None in the others. Every process calls, with a `run` of its own.

        `advance` is told of the questions that need not be asked again.
        """
        starts = range(0, len(dialogues), self.size)
        for number, start in enumerate(starts):
            part = dialogues[start : start + self.size]
            if number % distributed.world_size() != distributed.rank():
                continue
            if self._kept(number) is None:
                answers = run(part)
                atomic_write(self._file(number), json.dumps({"key": self.key, "answers": answers}))
            else:
                advance(sum(len(dialogue.turns) for dialogue in part))
        distributed.barrier()
        if not distributed.is_main_process():
            return None
        kept = [self._kept(number) for number in range(len(starts))]
        assert None not in kept, "each process has written its parts"
        return [answers for part in kept if part is not None for answers in part]

    def clear(self) -> None:
        """Remove what was kept, once the results are written."""
        if distributed.is_main_process():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"

    def _kept(self, number: int) -> Answers | None:
        try:
            content = json.loads(self._file(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return content["answers"] if content["key"] == self.key else None


def key_of(checkpoint: Path, dialogues: Sequence[EvalDialogue], settings: object) -> str:
    """What answers depend on, as one short text: the checkpoint's files, the questions, the settings."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    asked = [
        (each.system, [(turn.question, turn.image_path, turn.references) for turn in each.turns])
        for each in dialogues
    ]
    content = repr((str(checkpoint.resolve()), stamps, asked, settings))
    return hashlib.sha256(content.encode()).hexdigest()[:32]
