"""Records as an adapter gets them, with pictures on the disk where one is asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from utils.data.spec import RawRecord


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two image folders."""
    made = tmp_path / "first", tmp_path / "second"
    for folder in made:
        folder.mkdir()
    return made


@pytest.fixture
def raw(folders: tuple[Path, Path]) -> Callable[..., RawRecord]:
    """Make a record of these fields; another seed draws otherwise."""

    def make(fields: dict[str, Any], seed: int = 0, file: int = 0) -> RawRecord:
        return RawRecord(fields, "set/file.json#7", folders, np.random.default_rng(seed), file)

    return make


@pytest.fixture
def write_picture(folders: tuple[Path, Path]) -> Callable[..., Path]:
    """Write a small picture into an image folder."""

    def write(name: str, folder: int = 0, size: tuple[int, int] = (4, 3)) -> Path:
        path = folders[folder] / name
        PIL.Image.new("RGB", size).save(path)
        return path

    return write
