"""The folders that training writes: resumable checkpoint-N beside best and final, each complete or not there.

checkpoint-N holds DeepSpeed's engine state without the frozen weights (`global_stepN`, `latest`), the
scheduler, the random states, the Trainer's state and a manifest of all of it, and besides the weights in a form
that loads for chat and evaluation. {output_dir}/latest names the one that was written last.

The manifest is written last: a JSON file with the size and the SHA-256 of every other file, the versions of the
libraries that wrote them, and a digest of itself. A folder without one was not finished.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from utils.atomic import atomic_write, remove_directory
from utils.distributed import get_logger

logger = get_logger(__name__)

TRAINER_STATE = "trainer_state.json"
RUN = "run.json"
SCHEDULER = "scheduler.pt"
LATEST = "latest"
"""In {output_dir} the name of the newest checkpoint, in a checkpoint that of DeepSpeed's folder."""

_STEP = re.compile(r"checkpoint-(\d+)")
NOT_RESUMED = (None, False, "", "False", "false")
"""Values of --resume_from_checkpoint that begin a new run."""
_NEWEST = (True, "True", "true", "latest")


class ResumeError(ValueError):
    """A checkpoint that training cannot go on from; the message is one line and says what to do."""


def results_in(output_dir: str | Path) -> list[str]:
    """The names of what an earlier run has left there that another would replace: checkpoint-N, best, final."""
    output = Path(output_dir)
    numbers = {
        folder: found for folder in output.glob("checkpoint-*") if (found := _STEP.fullmatch(folder.name))
    }
    checkpoints = sorted(numbers, key=lambda folder: int(numbers[folder][1]))
    return [folder.name for folder in (*checkpoints, output / "best", output / "final") if folder.is_dir()]


def require_free(output_dir: str | Path, resumed: Path | None, may_begin: bool) -> None:
    """Refuse to train over the results of another run.

    Args:
        output_dir: where this run is to write.
        resumed: the checkpoint that it goes on from; None where it begins.
        may_begin: `--resume_from_checkpoint auto`: a run that has no checkpoint yet may begin again, so a `best` of
            its first evaluation is no obstacle.

    Raises `ResumeError`, which names what is there and the ways on.
    """
    found = results_in(output_dir)
    if resumed is not None and resumed.parent.resolve() == Path(output_dir).resolve():
        return
    if not found or (may_begin and found == ["best"]):
        return
    shown = found if len(found) < 6 else [*found[:2], "...", *found[-3:]]
    going_on = any(_STEP.fullmatch(name) for name in found) and not may_begin
    raise ResumeError(
        f"{output_dir} holds the results of an earlier run ({', '.join(shown)}): give"
        + (" --resume_from_checkpoint auto to resume it," if going_on and resumed is None else "")
        + " another --output_dir, or --overwrite_output_dir true to delete them"
    )


def remove_results(output_dir: str | Path) -> None:
    """Delete what `results_in` names, and what belongs to it."""
    output = Path(output_dir)
    for name in results_in(output):
        remove_directory(output / name)
    (output / LATEST).unlink(missing_ok=True)


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after `step` optimizer steps."""
    return f"checkpoint-{step}"


def resumable_checkpoints(output_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run in the order in which they were written, by their files' sizes."""
    return _sorted_out(output_dir)[0]


def resume_folder(output_dir: str | Path, wanted: str | bool | None) -> Path | None:
    """The checkpoint to go on from; None for a fresh start.

    wanted: "True" for the newest complete one, "auto" for the same or a fresh start where none was ever
    written, or a folder. Every file is read and compared with the manifest; a damaged checkpoint is named in
    the log and the one before it taken. Raises `ResumeError` where there is nothing to go on from.
    """
    if wanted in NOT_RESUMED:
        return None
    if wanted not in (*_NEWEST, "auto"):
        return _named(Path(str(wanted)))
    sound, damaged = _sorted_out(output_dir)
    for folder in reversed(sound):
        found = damage(folder)
        if not found:
            break
        damaged[folder] = found
    else:
        folder = None
    for each, found in damaged.items():
        logger.warning("%s is not used: %s", each, "; ".join(found))
    if folder is not None or (wanted == "auto" and not damaged):
        return folder
    none = f"all of its checkpoints are damaged ({len(damaged)})" if damaged else "there is no checkpoint-N"
    raise ResumeError(f"{output_dir}: {none}; leave out --resume_from_checkpoint to start afresh")


def _named(folder: Path) -> Path:
    if not folder.is_dir():
        raise ResumeError(f"--resume_from_checkpoint {folder}: no such folder; name a checkpoint-N of a run")
    found = damage(folder) or _not_resumable(folder)
    if found:
        others = [each.name for each in resumable_checkpoints(folder.parent) if each != folder]
        instead = f"the newest complete one is {others[-1]}" if others else "name a checkpoint-N of a run"
        raise ResumeError(f"--resume_from_checkpoint {folder}: {'; '.join(found)}; {instead}")
    return folder


def _not_resumable(folder: Path) -> list[str]:
    missing = [name for name in (RUN, TRAINER_STATE, LATEST) if name not in read_manifest(folder).files]
    return [f"it has no {missing[0]}, so it is for use only (--save_only_model?)"] if missing else []


def _sorted_out(output_dir: str | Path) -> tuple[list[Path], dict[Path, list[str]]]:
    """Checkpoints by their files' sizes: the complete ones, oldest first, and what is wrong with the others."""
    complete, damaged = [], {}
    for folder in sorted(Path(output_dir).glob("checkpoint-*")):
        step = _STEP.fullmatch(folder.name)
        if not (step and folder.is_dir()):
            continue
        found = damage(folder, contents=False) or _not_resumable(folder)
        if found:
            damaged[folder] = found
        else:
            complete.append((read_manifest(folder).order, int(step[1]), folder))
    return [folder for *_, folder in sorted(complete)], damaged


def next_order(output_dir: str | Path) -> int:
    """The order of the checkpoint that comes after all that are there; steps may have been gone over again."""
    orders = [0]
    for folder in Path(output_dir).glob("checkpoint-*"):
        try:
            orders.append(read_manifest(folder).order)
        except ManifestError:
            continue  # named when a checkpoint is looked for
    return max(orders) + 1


def point_to(folder: Path) -> None:
    """Let {output_dir}/latest name a checkpoint."""
    atomic_write(folder.parent / LATEST, folder.name + "\n")


def rotate(output_dir: str | Path, limit: int | None, kept: Sequence[str | None] = ()) -> None:
    """Remove the oldest checkpoints above `limit` (None: no limit), never the newest nor those in `kept`.

    Only complete ones count, and only complete ones go: a damaged one is left for a person to look at.
    """
    if not limit or limit < 1:
        return
    found = resumable_checkpoints(output_dir)
    safe = {str(found[-1]), *kept} if found else set()
    removable = [folder for folder in found if str(folder) not in safe]
    for folder in removable[: max(len(found) - limit, 0)]:
        remove_directory(folder)


MANIFEST = "manifest.json"
_FORMAT = 1
_LIBRARIES = ("torch", "transformers", "deepspeed", "accelerate", "peft", "safetensors")
_CHUNK = 1 << 20  # bytes

T = TypeVar("T")


class ManifestError(ValueError):
    """A folder has no manifest that can be relied on; the message is one line."""


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when the folder was finished; size in bytes."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A finished folder. order: its place among the folders that were written side by side, counted up."""

    order: int
    versions: dict[str, str]
    files: dict[str, FileRecord]  # by their paths from the folder, with slashes


def write_manifest(folder: str | Path, order: int = 0) -> Manifest:
    """Read every file in `folder` and write down what they are, as the last file of all."""
    folder = Path(folder)
    names = [name for name in _files(folder) if name != MANIFEST]
    manifest = Manifest(
        order, _versions(), dict(zip(names, _side_by_side(_record, folder, names), strict=True))
    )
    body = {"format": _FORMAT, **asdict(manifest)}
    atomic_write(folder / MANIFEST, json.dumps({**body, "digest": _digest(body)}, indent=1))
    return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a folder; `ManifestError` where it is missing or damaged."""
    path = Path(folder) / MANIFEST
    try:
        body = json.loads(path.read_bytes())
        if body.pop("digest") != _digest(body):
            raise ManifestError(f"{MANIFEST} is damaged: its content has changed")
        if body["format"] != _FORMAT:
            raise ManifestError(f"{MANIFEST} has format {body['format']}, this program reads {_FORMAT}")
        files = {name: FileRecord(**record) for name, record in body["files"].items()}
        return Manifest(body["order"], body["versions"], files)
    except FileNotFoundError as error:
        raise ManifestError(f"{MANIFEST} is missing: writing was not finished") from error
    except OSError as error:
        raise ManifestError(f"{MANIFEST} cannot be read ({error.strerror})") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{MANIFEST} is damaged: it is not what was written") from error


def damage(folder: str | Path, contents: bool = True) -> list[str]:
    """What is wrong with a finished folder, a line for each file; empty where all is as it was written.

    contents: read the files too, and not only their sizes. Files that came later are none of its business.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        return [str(error)]
    found = {}
    for name, record in manifest.files.items():
        try:
            size = os.stat(folder / name).st_size
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            found[name] = f"{name} is missing" if missing else f"{name} cannot be read ({error.strerror})"
            continue
        if size != record.size:
            found[name] = f"{name} has {size:,} bytes of {record.size:,}"
    if contents:
        names = [name for name in manifest.files if name not in found]
        for name, seen in zip(names, _side_by_side(_record_or_error, folder, names), strict=True):
            if isinstance(seen, str):
                found[name] = f"{name} cannot be read ({seen})"
            elif seen != manifest.files[name]:
                found[name] = f"{name} is damaged: its content has changed"
    return [found[name] for name in manifest.files if name in found]


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _side_by_side(record: Callable[[Path], T], folder: Path, names: Iterable[str]) -> list[T]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves Python's lock alone
        return list(pool.map(record, (folder / name for name in names)))


def _record_or_error(path: Path) -> FileRecord | str:
    """The error's text where the file cannot be read."""
    try:
        return _record(path)
    except OSError as error:
        return error.strerror or str(error)


def _record(path: Path) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(size, digest.hexdigest())


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # peft and deepspeed are not needed everywhere
            continue
    return found
