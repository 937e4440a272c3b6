"""Files of the miniature: JSON, and folders that are written once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from utils.atomic import atomic_directory


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False))


def write_once(
    root: Path, manifest: str, wanted: dict[str, int], what: str, write: Callable[[Path], None]
) -> bool:
    """Have `write` fill `root`, all or nothing, unless its `manifest` says that `wanted` is there already.

    Returns whether it was written. Raises `FileExistsError` where `root` holds something else than `what`.
    """
    known = root / manifest
    if known.exists() and json.loads(known.read_text()) == wanted:
        return False
    if root.exists() and not known.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty and holds no {what}: name another folder")
    with atomic_directory(root) as aside:
        write(aside)
        write_json(aside / manifest, wanted)
    return True
