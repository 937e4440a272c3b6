"""Evaluation dialogues: the JSON format of 2023, and the same with reference answers and kinds of question.

    {"name of the dialogue": [["question", "a.jpg b.jpg"], ["follow-up without a new image"],
                              ["question", "", "reference answer", "kind"],
                              {"question": ..., "images": ["c.jpg"], "answer": ["one", "another"], "kind": ...}]}

Only the question is required. Image paths stand in one string, separated by spaces (quoted where they hold
some), or in a list. Several reference answers, as several people gave them, stand in a list.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chat.image_paths import ImagePathError, split_image_paths
from utils.commands import UsageError
from utils.conversation import Image

ROOT = Path(__file__).resolve().parent.parent
EVAL_DATA = ROOT / "eval" / "eval_data"
IMAGE_FOLDERS = ("", "image", "images")
"""Where, beside the JSON file, images are looked for; then come the working directory and the repository."""


class EvalDataError(UsageError):
    """An evaluation file that cannot be used; the message names the file, the dialogue and the turn."""


@dataclass(frozen=True)
class EvalTurn:
    """A question; `image_path` is as written in the file, `references` are empty where no answer is given."""

    question: str
    image_path: str = ""
    images: tuple[Image, ...] = ()
    references: tuple[str, ...] = ()
    kind: str = ""

    @property
    def reference(self) -> str | None:
        """The first reference answer, which stands in a history of references."""
        return self.references[0] if self.references else None


@dataclass(frozen=True)
class EvalDialogue:
    """Turns that follow each other in one dialogue."""

    name: str
    turns: tuple[EvalTurn, ...]

    @property
    def images(self) -> int:
        """How many images it has in all."""
        return sum(len(turn.images) for turn in self.turns)


def load_dialogues(
    name: str | Path, image_folder: str | Path | None = None, max_images: int = 8
) -> tuple[EvalDialogue, ...]:
    """Read the evaluation set `name` (of eval/eval_data), or the JSON file at that path.

    Every image must exist; `image_folder` is where relative paths start, instead of the folders that are
    tried otherwise. Raises `EvalDataError` with what is wrong first.
    """
    file = _file_of(name)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EvalDataError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or not content:
        raise EvalDataError(
            f"{file}: expected an object of dialogues by name, found {type(content).__name__}"
        )
    folders = _image_folders(file, image_folder)
    dialogues = []
    for dialogue_name, turns in content.items():
        where = f"{file.name}: {dialogue_name!r}"
        if not isinstance(turns, list) or not turns:
            raise EvalDataError(f"{where}: expected a list of turns, found {turns!r:.60}")
        read = [_turn(turn, folders, f"{where}, turn {number}") for number, turn in enumerate(turns, start=1)]
        dialogue = EvalDialogue(dialogue_name, tuple(read))
        if dialogue.images > max_images:
            raise EvalDataError(f"{where}: {dialogue.images} images, of {max_images} allowed in a dialogue")
        dialogues.append(dialogue)
    return tuple(dialogues)


def _file_of(name: str | Path) -> Path:
    for file in (Path(name), EVAL_DATA / f"{name}.json"):
        if file.is_file():
            return file
    known = ", ".join(sorted(path.stem for path in EVAL_DATA.glob("*.json")))
    raise EvalDataError(
        f"there is no evaluation set {str(name)!r}; give the path of a JSON file, or one of: {known}"
    )


def _image_folders(file: Path, image_folder: str | Path | None) -> list[Path]:
    if image_folder is not None:
        return [Path(image_folder)]
    return [*(file.parent / folder for folder in IMAGE_FOLDERS), Path(), ROOT]


def _turn(entry: Any, folders: list[Path], where: str) -> EvalTurn:
    if isinstance(entry, str):
        entry = [entry]
    if isinstance(entry, list) and 1 <= len(entry) <= 4:
        entry = dict(zip(("question", "images", "answer", "kind"), entry, strict=False))
    if not isinstance(entry, dict):
        raise EvalDataError(f"{where}: expected [question, images, answer, kind], found {entry!r:.60}")
    if unknown := sorted(set(entry) - {"question", "images", "answer", "kind"}):
        raise EvalDataError(
            f"{where}: unknown key {unknown[0]!r}; the keys are question, images, answer, kind"
        )
    question, written = entry.get("question"), entry.get("images") or ""
    references, kind = entry.get("answer") or [], entry.get("kind") or ""
    references = [references] if isinstance(references, str) else references
    if not isinstance(question, str) or not question.strip():
        raise EvalDataError(f"{where}: the question is missing")
    texts = isinstance(references, list) and all(isinstance(each, str) and each for each in references)
    if not isinstance(kind, str) or not texts:
        raise EvalDataError(f"{where}: answer must be a text or a list of texts, kind a text")
    try:
        paths = split_image_paths(written) if isinstance(written, str) else tuple(map(str, written))
    except (ImagePathError, TypeError) as error:
        raise EvalDataError(f"{where}: {error}") from error
    return EvalTurn(
        question=question,
        image_path=written if isinstance(written, str) and paths else " ".join(paths),
        images=tuple(Image(_found(path, folders, where), path) for path in paths),
        references=tuple(references),
        kind=kind,
    )


def _found(path: str, folders: list[Path], where: str) -> Path:
    for folder in folders:
        if (folder / path).is_file():
            return folder / path
    raise EvalDataError(f"{where}: there is no image {path!r} in {folders[0].resolve()}; see --image_folder")
