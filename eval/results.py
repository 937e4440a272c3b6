"""What an evaluation leaves behind: a CSV of all answers, scores as JSON, and tables to read."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from eval.dialogues import EvalDialogue
from eval.metrics import Score, Scored, Scores, is_correct, scores_of
from utils.atomic import atomic_write

COLUMNS = ("test_name", "image_path", "question", "answer")
"""The CSV of 2023; `image_path` is empty where a turn has no new image."""

REFERENCE_COLUMNS = ("reference", "kind", "correct")
"""They follow where the set has reference answers; `correct` is 1 or 0, and empty without a reference."""


@dataclass(frozen=True)
class Row:
    """A question with the model's answer; None where the dialogue had grown too long to ask it."""

    test_name: str
    image_path: str
    question: str
    answer: str | None
    reference: str | None = None
    kind: str = ""

    @property
    def correct(self) -> bool | None:
        """Whether the answer matches; None without a reference."""
        return None if self.reference is None else is_correct(self.answer or "", self.reference)


def rows_of(dialogues: Sequence[EvalDialogue], answers: Sequence[Sequence[str | None]]) -> list[Row]:
    """The rows in the order of the file."""
    return [
        Row(dialogue.name, turn.image_path, turn.question, answer, turn.reference, turn.kind)
        for dialogue, given in zip(dialogues, answers, strict=True)
        for turn, answer in zip(dialogue.turns, given, strict=True)
    ]


def scores_of_rows(rows: Sequence[Row]) -> Scores | None:
    """Scores over the rows with a reference; None where there is none."""
    return scores_of(
        Scored(row.answer or "", row.reference, row.kind) for row in rows if row.reference is not None
    )


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows; further columns only where a reference exists."""
    referenced = any(row.reference is not None for row in rows)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS + REFERENCE_COLUMNS if referenced else COLUMNS)
    for row in rows:
        line = [row.test_name, row.image_path, row.question, row.answer or ""]
        if referenced:
            line += [row.reference or "", row.kind, "" if row.correct is None else int(row.correct)]
        writer.writerow(line)
    atomic_write(path, text.getvalue())


def write_scores(path: Path, scores: Scores, settings: dict[str, Any]) -> None:
    """Write scores, and the settings under which they came about, as JSON."""
    content = {
        "settings": settings,
        "overall": _as_json(scores.overall),
        "kinds": {kind: _as_json(score) for kind, score in scores.kinds.items()},
    }
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def score_table(title: str, scores: Scores) -> Table:
    """Accuracy by kind and overall, the majority answer's beside it."""
    table = Table(title=title, title_justify="left")
    table.add_column("kind")
    for heading in ("questions", "accuracy", "majority"):
        table.add_column(heading, justify="right")
    table.add_column("majority answer")
    for kind, score in scores.kinds.items():
        if len(scores.kinds) > 1:
            table.add_row(*_cells(kind or "(no kind)", score))
    table.add_section()
    table.add_row(*_cells("overall", scores.overall), style="bold")
    return table


def _cells(kind: str, score: Score) -> tuple[str, ...]:
    accuracy, majority = f"{score.accuracy:.1%}", f"{score.majority_accuracy:.1%}"
    return kind, str(score.count), accuracy, majority, score.majority_answer or "(each kind's)"


def _as_json(score: Score) -> dict[str, Any]:
    return {
        **asdict(score),
        "accuracy": round(score.accuracy, 6),
        "majority_accuracy": round(score.majority_accuracy, 6),
    }
