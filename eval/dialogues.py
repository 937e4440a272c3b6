"""Evaluation dialogues: the JSON format of 2023, and the same with reference answers and kinds of question.

    {"name of the dialogue": [["question", "a.jpg b.jpg"], ["follow-up without a new image"],
                              ["question", "", "reference answer", "kind"],
                              {"question": ..., "images": ["c.jpg"], "answer": ["one", "another"], "kind": ...}]}

Only the question is required. Image paths stand in one string, separated by spaces (quoted where they hold
some), or in a list. Several reference answers, as several people gave them, stand in a list.

Data of one's own, in the shapes and files in which they are trained (`utils.data.adapters.custom`), are taken too: a
record is a dialogue, its answers are the references, and a question without one is asked all the same.
"""

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from chat.images import ImagePathError, local_path, split_image_paths
from utils.commands import ROOT, UsageError
from utils.conversation import Conversation, ConversationError, Image, ImageError
from utils.data.adapters.custom import custom
from utils.data.bad_records import reason_of
from utils.data.mixing.dataset import DatasetRecords
from utils.data.readers.json_stream import REWRITE, JsonStream
from utils.data.registry import find_specs
from utils.data.spec import DataError, PictureStore
from utils.images import shortened

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
    """Turns that follow each other in one dialogue, behind a system text (None: the template's)."""

    name: str
    turns: tuple[EvalTurn, ...]
    system: str | None = None

    @property
    def images(self) -> int:
        """How many images it has in all."""
        return sum(len(turn.images) for turn in self.turns)


@dataclass(frozen=True)
class BadDialogue:
    """A dialogue that cannot be asked, by its name or its place in the file, and why."""

    dialogue: str
    reason: str

    @classmethod
    def of(cls, name: str, error: Exception) -> "BadDialogue":
        """From an error about it, which may begin with its name."""
        return cls(name, reason_of(error, name))


@dataclass(frozen=True)
class EvalSet:
    """The dialogues of a file, in its order, each name once; those that are `bad` are not among them."""

    dialogues: tuple[EvalDialogue, ...]
    bad: tuple[BadDialogue, ...] = ()

    def checked(self, check: Callable[[EvalDialogue], None]) -> "EvalSet":
        """The same without the dialogues of which `check` raises a `ValueError`; a `UsageError` is about more."""
        sound, bad = [], []
        for dialogue in self.dialogues:
            try:
                check(dialogue)
            except UsageError:
                raise
            except ValueError as error:  # ConversationError, ImageError, and the processor's about a text
                bad.append(BadDialogue.of(dialogue.name, error))
            else:
                sound.append(dialogue)
        return EvalSet(tuple(sound), (*self.bad, *bad))


def read_set(name: str | Path, image_folder: str | Path | None = None, max_images: int = 8) -> EvalSet:
    """Read the evaluation set `name` (of eval/eval_data), or the file at that path: dialogues in the format of 2023,
    or records as training takes them.

    Every image must exist; `image_folder` is where relative paths start, instead of the folders that are
    tried otherwise. Raises `EvalDataError` for a file that cannot be read, or holds no dialogue.
    """
    if image_folder is not None and not Path(image_folder).is_dir():
        raise EvalDataError(f"--image_folder {image_folder}: there is no such folder")
    file = _file_of(name)
    try:
        found = _own_data(file, image_folder) if _is_own_data(file) else _published(file, image_folder)
        read = list(found)
    except DataError as error:
        raise EvalDataError(str(error)) from error
    if not read:
        raise EvalDataError(f"{file}: it contains no dialogue")
    seen: Counter[str] = Counter()
    dialogues: list[EvalDialogue] = []
    bad: list[BadDialogue] = []
    for dialogue in read:
        if isinstance(dialogue, EvalDialogue) and dialogue.images > max_images:
            reason = f"{dialogue.images} images, of {max_images} allowed in a dialogue; see --max_images"
            dialogue = BadDialogue(dialogue.name, reason)
        if isinstance(dialogue, BadDialogue):
            bad.append(dialogue)
        else:
            dialogues.append(replace(dialogue, name=_unused(dialogue.name, seen)))
    return EvalSet(tuple(dialogues), tuple(bad))


def load_dialogues(
    name: str | Path, image_folder: str | Path | None = None, max_images: int = 8
) -> tuple[EvalDialogue, ...]:
    """The dialogues of `read_set`; raises `EvalDataError` where one of them is bad."""
    found = read_set(name, image_folder, max_images)
    if found.bad:
        raise EvalDataError(f"{Path(name).name}: {found.bad[0].dialogue!r}: {found.bad[0].reason}")
    return found.dialogues


def _unused(name: str, seen: Counter[str]) -> str:
    """The name, or with a number behind it where a dialogue before has it."""
    seen[name] += 1
    return name if seen[name] == 1 else _unused(f"{name} ({seen[name]})", seen)


def _file_of(name: str | Path) -> Path:
    for file in (Path(name), EVAL_DATA / f"{name}.json"):
        if file.exists():
            return file
    known = ", ".join(sorted(path.stem for path in EVAL_DATA.glob("*.json")))
    raise EvalDataError(
        f"there is no evaluation set {shortened(str(name))!r}; give the path of a file, or one of: {known}"
    )


def _is_own_data(file: Path) -> bool:
    """Whether a file holds records as training takes them, and not an object of dialogues by name."""
    if file.is_dir() or file.name.lower().endswith((".jsonl", ".ndjson", ".gz", ".parquet")):
        return True
    with JsonStream(file, remedy=REWRITE) as stream:
        if stream.peek() != "{":
            return True
        name = next(stream.members(), None)
        if name is None:
            raise EvalDataError(f"{file}: expected an object of dialogues by name, found an empty one")
        opening = stream.value().value
    first = opening[0] if isinstance(opening, list) and opening else opening
    return name in ("conversations", "messages") or (isinstance(first, dict) and "question" not in first)


def _own_data(file: Path, image_folder: str | Path | None) -> Iterator[EvalDialogue | BadDialogue]:
    """Records in the shapes of `utils.data.adapters.custom`; their answers are the references."""
    (spec,) = find_specs([str(file)], image_folder)
    records = DatasetRecords(replace(spec, adapter=partial(custom, keep_unanswered=True)), Path())
    for index in range(len(records)):
        record = records.record([index], np.random.default_rng(0))
        place = f"{file.name}#{index}"
        try:
            conversation = records.adapt(record)
        except (ConversationError, ImageError) as error:
            yield BadDialogue(place, reason_of(error, records.place(index)))
            continue
        assert isinstance(conversation, Conversation), "this adapter leaves nothing out"
        turns = [
            EvalTurn(
                turn.question,
                shlex.join(_written(image, records.places[0]) for image in turn.images),
                turn.images,
                () if turn.answer is None else (turn.answer,),
                turn.kind,
            )
            for turn in conversation.turns
        ]
        named = record.fields.get("id")
        name = str(named) if isinstance(named, str | int) and str(named).strip() else place
        yield EvalDialogue(name, tuple(turns), conversation.system)


def _written(image: Image, folder: Path | PictureStore) -> str:
    """An image's path as its record writes it; the name of one that the record holds itself."""
    path = image.source
    if not isinstance(path, Path):
        return image.name
    if isinstance(folder, Path) and path.is_relative_to(folder):
        path = path.relative_to(folder)
    return str(path)


def _published(file: Path, image_folder: str | Path | None) -> Iterator[EvalDialogue | BadDialogue]:
    """Dialogues by name in the format of 2023, and with its extensions."""
    folders = _image_folders(file, image_folder)
    with JsonStream(file, remedy=REWRITE) as stream:
        for key in stream.members():
            read = stream.value()
            name = key.encode(errors="replace").decode()  # half a character can be written nowhere
            try:
                if read.repeated_key is not None:
                    raise EvalDataError(f"the key {read.repeated_key!r} is in it twice")
                yield EvalDialogue(name, _turns(read.value, folders))
            except EvalDataError as error:
                yield BadDialogue.of(name, error)
        stream.end()


def _image_folders(file: Path, image_folder: str | Path | None) -> list[Path]:
    if image_folder is not None:
        return [Path(image_folder)]
    return [*(file.parent / folder for folder in IMAGE_FOLDERS), Path(), ROOT]


def _turns(turns: Any, folders: list[Path]) -> tuple[EvalTurn, ...]:
    if not isinstance(turns, list) or not turns:
        raise EvalDataError(f"expected a list of turns, found {turns!r:.60}")
    return tuple(_turn(turn, folders, f"turn {number}") for number, turn in enumerate(turns, start=1))


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
        paths = (
            split_image_paths(written)
            if isinstance(written, str)
            else tuple(map(local_path, map(str, written)))
        )
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
        if os.path.isfile(folder / path):  # False for a name that no file can have
            return folder / path
    raise EvalDataError(
        f"{where}: there is no image {shortened(path)!r} in {folders[0].resolve()}; see --image_folder"
    )
