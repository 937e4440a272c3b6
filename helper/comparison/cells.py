"""What is compared: the forms of attention, the trainings of each, and the file that keeps what came of them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from utils.atomic import atomic_write
from utils.commands import UsageError

Row = dict[str, Any]
"""What came of a training, as a line of the results has it."""


@dataclass(frozen=True)
class Form:
    """An attention, what images go through in the decoder, the gate on what is read of them, and their summaries."""

    attention: str
    image_layers: str = "full"
    image_gate: str = "none"
    image_summary: str = "none"


FORMS = {
    "causal": Form("causal"),
    "mmca-none-gate-summary": Form("mmca", "none", "head", "mean"),
    "mmca-none-gate": Form("mmca", "none", "head"),
    "mmca": Form("mmca"),
    "cross-none-summary": Form("cross", "none", "none", "mean"),
    "causal-summary": Form("causal", image_summary="mean"),
    "mmca-gate-summary": Form("mmca", "full", "head", "mean"),
    "mmca-no_mlp-gate-summary": Form("mmca", "no_mlp", "head", "mean"),
    "cross-none": Form("cross", "none"),
    "cross": Form("cross"),
}
"""Those that matter most first: an interrupted comparison has these of every seed."""

DECODERS = {"smollm2": "SmolLM2-135M-Instruct", "gemma3": "Gemma 3 270M"}
PARTS = {
    "singles": "single images",
    "names": "what each of three images shows",
    "dialogues": "dialogues of all kinds over three images",
}
"""Of a training, in their order."""


@dataclass(frozen=True)
class Plan:
    """How each form learns and is asked; the same for all.

    Every sample is seen once: first single images, then dialogues that ask what each of several images shows, then
    dialogues of all kinds, as many as the last of `asked_singles`, `asked_names` and `asked_dialogues` (none where that
    is empty). Projection, embedding, gate and adapters learn, the projection at the rate that a search found. The rate
    rises for `warmup` steps and then stays, so the model after N samples is the one that a training of N samples gives,
    and one run answers for all N.
    """

    decoder: str = "smollm2"  # or gemma3
    things: int = 12
    batch: int = 8
    warmup: int = 8
    lora: int = 16  # rank of adapters in the decoder's attention; 0: none
    lora_rate: float = 1e-3
    embedding_rate: float = 1e-4
    rates: tuple[float, ...] = (1e-3, 3e-3, 9e-3)
    gate_rate: float = 0.03
    search_singles: int = 96
    search_names: int = 48
    asked_singles: tuple[int, ...] = (48, 80, 112, 160, 208, 256)
    asked_names: tuple[int, ...] = (64, 128, 192, 256, 320)
    asked_dialogues: tuple[int, ...] = (96, 192, 288, 384)
    held_out_singles: int = 48
    held_out_names: int = 24
    held_out_dialogues: int = 32
    distractors: tuple[int, ...] = (0, 1, 2, 4, 6, 8)
    distractor_dialogues: int = 8  # for each number of them

    @classmethod
    def without_adapters(cls, decoder: str = "smollm2") -> "Plan":
        """What learns by default: projection, embedding and gate. They take higher rates."""
        return cls(
            decoder=decoder,
            lora=0,
            rates=(3e-3, 9e-3, 2.7e-2),
            asked_names=(64, 128, 192, 256, 320, 384, 448),
            asked_dialogues=(),
        )

    @property
    def settings(self) -> Row:
        """As JSON gives it back."""
        return json.loads(json.dumps(asdict(self)))


class Cell(NamedTuple):
    """One training. With `rate` it is a search of the form's learning rate: short, and of seed 0."""

    form: str
    seed: int
    rate: float = 0.0

    def __str__(self) -> str:
        return f"{self.form}, rate {self.rate:g}" if self.rate else f"{self.form}, seed {self.seed}"


class Results:
    """Rows of results in a file, a JSON object a line; each is on the disk as soon as it is there."""

    def __init__(self, path: Path, settings: Row) -> None:
        """Raises `UsageError` where the file has results of other settings."""
        self.path, self.settings = path, settings
        self.rows: dict[Cell, Row] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                cell = Cell(row["form"], row["seed"], row["rate"] if row["search"] else 0.0)
                row["settings"] = before = {"decoder": "smollm2", **row["settings"]}  # once there was one
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{path}, line {number}, is no result ({error!r}): remove it") from error
            if changed := [name for name in {**settings, **before} if before.get(name) != settings.get(name)]:
                raise UsageError(
                    f"{path} has results of other settings ({', '.join(changed)}): move it away to begin anew,"
                    " or give another --docs"
                )
            self.rows[cell] = row

    def add(self, cell: Cell, row: Row) -> None:
        """Keep what came of a cell."""
        known = {"form": cell.form, "seed": cell.seed, "search": bool(cell.rate)}
        self.rows[cell] = {**known, **row, "settings": self.settings}
        atomic_write(self.path, "".join(json.dumps(each) + "\n" for each in self.rows.values()))

    def rate(self, form: str, plan: Plan) -> float:
        """The rate with which a form's loss was least at the end of its searches."""
        return min(plan.rates, key=lambda rate: self.rows[Cell(form, 0, rate)]["last_loss"])

    def compared(self) -> list[Row]:
        """The rows of the trainings that are compared, as far as they are there."""
        forms = list(FORMS)
        rows = [row for row in self.rows.values() if not row["search"]]
        return sorted(rows, key=lambda row: (forms.index(row["form"]), row["seed"]))
