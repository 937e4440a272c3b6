"""What an evaluation leaves behind: a CSV of all answers, the same with scores as JSON, and tables to read."""

import base64
import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
from rich.console import RenderableType
from rich.table import Table

from eval.scores import Row, Score, Scores
from utils.atomic import atomic_write
from utils.commands import UsageError
from utils.conversation import Image, ImageError
from utils.images import is_data_url

if TYPE_CHECKING:
    from eval.dialogues import EvalDialogue

COLUMNS = ("test_name", "image_path", "question", "answer")
"""The CSV of 2023; `image_path` is empty where a turn has no new image."""

REFERENCE_COLUMNS = ("reference", "kind", "correct")
"""They follow where the set has reference answers; `correct` is 1 or 0, and empty without a reference."""

_LARGEST = 360  # pixels of an image on a page
_SMALL = 128  # images up to here stay exact


class ResultsError(UsageError):
    """A file of results that cannot be used; the message names it and says what to do."""


def rows_of(dialogues: "Sequence[EvalDialogue]", answers: Sequence[Sequence[str | None]]) -> list[Row]:
    """The rows in the order of the file."""
    rows = []
    for dialogue, given in zip(dialogues, answers, strict=True):
        shown = 0
        for turn, answer in zip(dialogue.turns, given, strict=True):
            shown += len(turn.images)
            files = tuple(map(_file, turn.images))
            rows.append(
                Row(
                    dialogue.name,
                    turn.image_path,
                    turn.question,
                    answer,
                    turn.references,
                    turn.kind,
                    files,
                    shown,
                )
            )
    return rows


def _file(image: Image) -> str:
    """The image's file; one that the set itself holds is written down, reduced, as a data URL."""
    if isinstance(image.source, str | Path):
        return str(Path(image.source).resolve())
    return picture_url(image) or image.name


@lru_cache(maxsize=4096)
def picture_url(source: str | Image) -> str | None:
    """An image, or that of a file, reduced for a page, as a data URL; one that is a data URL already stays as it is.

    None if it cannot be read any more.
    """
    if isinstance(source, str) and is_data_url(source):
        return source
    try:
        picture = (source if isinstance(source, Image) else Image(Path(source))).open()
    except ImageError:
        return None
    stream = io.BytesIO()
    if max(picture.size) <= _SMALL:
        picture.save(stream, "PNG")
        kind = "png"
    else:
        picture.thumbnail((_LARGEST, _LARGEST), PIL.Image.Resampling.LANCZOS)
        picture.save(stream, "JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows; further columns only where a reference exists."""
    referenced = any(row.references for row in rows)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS + REFERENCE_COLUMNS if referenced else COLUMNS)
    for row in rows:
        line: list[str | int] = [row.test_name, row.image_path, row.question, row.answer or ""]
        if referenced:
            correct = "" if row.correct is None else int(row.correct)
            line += [" | ".join(row.references), row.kind, correct]
        writer.writerow(line)
    atomic_write(path, text.getvalue())


def write_results(path: Path, rows: Sequence[Row], scores: Scores | None, settings: dict[str, Any]) -> None:
    """Write rows, scores and the settings under which they came about as JSON, for `eval.report` and scripts."""
    content: dict[str, Any] = {"settings": settings}
    if scores is not None:
        content["overall"] = _as_json(scores.overall)
        content["kinds"] = {kind: _as_json(score) for kind, score in scores.kinds.items()}
        content["images"] = {str(number): _as_json(score) for number, score in scores.images.items()}
    content["answers"] = [{**asdict(row), "correct": row.correct} for row in rows]
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_results(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The settings and rows that `write_results` wrote. Raises `ResultsError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = []
        for entry in content["answers"]:
            entry.pop("correct")
            rows.append(
                Row(**{**entry, "references": tuple(entry["references"]), "images": tuple(entry["images"])})
            )
        return content["settings"], rows
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(
            f"{path}: not a file of results ({error}); give the .json that eval.batch_generation wrote"
        ) from error


def score_table(title: str, scores: Scores) -> RenderableType:
    """Accuracy by kind, by number of images and overall, the majority answer's beside it."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("questions", "accuracy", "95 % interval", "majority"):
        table.add_column(heading, justify="right")
    table.add_column("majority answer")
    further = _further_columns(scores)
    for heading in further:
        table.add_column(heading, justify="right")
    if len(scores.kinds) > 1:
        for kind, score in scores.kinds.items():
            table.add_row(*_cells(kind or "(no kind)", score, further))
        table.add_section()
    if len(scores.images) > 1:
        for number, score in scores.images.items():
            table.add_row(*_cells(_images(number), score, further))
        table.add_section()
    table.add_row(*_cells("overall", scores.overall, further), style="bold")
    return table


def _images(number: int) -> str:
    return "1 image" if number == 1 else f"{number} images"


def _further_columns(scores: Scores) -> dict[str, Callable[[Score], str]]:
    """The columns that not every set has, each with how a score fills it."""
    columns: dict[str, Callable[[Score], str]] = {}
    if scores.overall.vqa is not None:
        columns["VQA"] = lambda score: "" if score.vqa is None else f"{score.vqa:.1%}"
    if scores.overall.overlap is not None:
        columns["ROUGE-L"] = lambda score: f"{score.overlap.rouge_l:.3f}" if score.overlap else ""
        columns["BLEU-4"] = lambda score: f"{score.overlap.bleu:.3f}" if score.overlap else ""
        columns["CIDEr"] = lambda score: f"{score.overlap.cider:.2f}" if score.overlap else ""
    return columns


def _cells(label: str, score: Score, further: dict[str, Callable[[Score], str]]) -> tuple[str, ...]:
    low, high = score.interval
    return (
        label,
        str(score.count),
        f"{score.accuracy:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{score.majority_accuracy:.1%}",
        score.majority_answer or "(each kind's)",
        *(fill(score) for fill in further.values()),
    )


def _as_json(score: Score) -> dict[str, Any]:
    content = {name: value for name, value in asdict(score).items() if value is not None}
    return {
        **content,
        "majority_answer": score.majority_answer,
        "interval": [round(value, 6) for value in score.interval],
        "accuracy": round(score.accuracy, 6),
        "majority_accuracy": round(score.majority_accuracy, 6),
    }
