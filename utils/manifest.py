"""What a finished folder holds, written into it last: what is missing, cut short or changed later is named.

The manifest is a JSON file with the size and the SHA-256 of every other file, the versions of the libraries that
wrote them, and a digest of itself. A folder without one was not finished.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from utils.atomic import atomic_write

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
