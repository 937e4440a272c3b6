"""The grid of a comparison, and the file that keeps what is known of it."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.atomic import atomic_write
from utils.commands import UsageError

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "training" / "training_scripts"

LEARNING = (
    *("LM_MODEL", "VISION_MODEL", "VIS_PROJ", "LANG_LORA_DIM", "VIS_LORA_DIM", "INIT_FROM"),
    *(
        "DATASETS",
        "DATASET_CONCAT",
        "DATA_TRAIN_SPLIT",
        "MAX_IMAGES",
        "MAX_SEQ_LEN",
        "PACKING",
        "GROUP_BY_LENGTH",
    ),
    *("EPOCHS", "MAX_STEPS", "GLOBAL_BATCH", "LR", "EMBEDDING_LR", "WEIGHT_DECAY", "WARMUP", "PRECISION"),
)
"""The values of the training scripts that decide what is learned; the others say where and how fast."""


_VALUE = re.compile(r'^(?:\[ -n "\$\{(\w+):-\}" \] \|\| )?: "\$\{(\w+):=(.*?)\}"', re.MULTILINE)
"""A line of a script that gives a name its value, some of them only where another name has none."""


class ComparisonError(UsageError):
    """A comparison that cannot go on; the message is one line and says what to do."""


@dataclass(frozen=True, order=True)
class Cell:
    """One training: an attention, so many records, a seed."""

    samples: int
    seed: int
    attention: str

    def __str__(self) -> str:
        return f"{self.attention}, {self.samples:,} records, seed {self.seed}"

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.attention}-{self.samples}-{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What came of it: shares from 0 to 1 over held-out questions, overall and by kind."""

    cell: Cell
    accuracy: float
    majority: float  # of always giving the commonest answer of a question's kind
    kinds: dict[str, float]
    questions: int
    evaluation_loss: float | None  # where training evaluates
    steps: int
    seconds: float


def grid(attentions: Sequence[str], samples: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
    """All cells; those that are compared with each other stand together, smaller data first."""
    return [
        Cell(count, seed, attention)
        for count in sorted(samples)
        for seed in seeds
        for attention in attentions
    ]


class Outcomes:
    """The outcomes in a file, each written as soon as it is there; only of one and the same settings."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Raises `ComparisonError` where the file holds outcomes of other settings."""
        self.path, self.settings = path, settings
        self._known: dict[Cell, Outcome] = {}
        if not path.is_file():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            outcomes = [Outcome(**{**row, "cell": Cell(**row["cell"])}) for row in content["outcomes"]]
            before = content["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ComparisonError(f"{path} is not a file of outcomes ({error!r}); remove it") from error
        if before != settings:
            changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
            raise ComparisonError(
                f"{path} holds outcomes of other settings ({', '.join(changed)}): remove it to begin anew, or give"
                " another --output"
            )
        self._known = {outcome.cell: outcome for outcome in outcomes}

    def __contains__(self, cell: Cell) -> bool:
        return cell in self._known

    def of(self, cells: Iterable[Cell]) -> list[Outcome]:
        """Those of the given cells that are known."""
        return [self._known[cell] for cell in cells if cell in self._known]

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome; after this it is on the disk."""
        self._known[outcome.cell] = outcome
        rows = [asdict(self._known[cell]) for cell in sorted(self._known)]
        atomic_write(self.path, json.dumps({"settings": self.settings, "outcomes": rows}, indent=1) + "\n")


def settings_of(data: Path) -> dict[str, Any]:
    """What all cells have in common: the scripts' values, those in the environment first, and digests of the models
    and the world."""
    values = {}
    for script in (SCRIPTS / "launch.sh", SCRIPTS / "run_tiny.sh"):  # run_tiny.sh is the first to set a value
        for unless, name, value in _VALUE.findall(script.read_text(encoding="utf-8")):
            if not (unless and os.environ.get(unless)):
                values[name] = value
    models = [
        file
        for name in ("tiny_clip", "tiny_llama")
        for file in sorted((ROOT / "assets" / name).iterdir())
        if file.suffix in (".json", ".safetensors", ".model")
    ]
    world = [data / "world.json", *sorted((data / "llava").glob("*.json")), data / "eval" / "miniature.json"]
    return {
        **{name: os.environ.get(name, values[name]) for name in LEARNING},
        "digest of assets/": _digest(models),
        "digest of the world": _digest(world),
    }


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
