"""The core without its wings: they are deleted in a copy, and the core's unit tests pass there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

MADE = {"output", "data", "visualchat.egg-info"}
PLACES = [place for name in sorted(house.deletable()) for place in house.WINGS[name].split()]


# An editable installation would find what is deleted in the folder that was copied.
PYTEST = """
import sys, pytest
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.exit(pytest.main(sys.argv[1:]))
"""


def left_behind(folder: str, names: list[str]) -> set[str]:
    """What of a folder is not copied: what is made, and at the top what is hidden or of a user's own."""
    at_top = Path(folder) == house.ROOT
    return {name for name in names if name == "__pycache__" or (at_top and (name[0] == "." or name in MADE))}


def files_of_the_core() -> list[Path]:
    """Test files that need none of those wings, nor does what they import of tests, or a conftest.py above them."""
    gone = {name for name in house.modules() if house.wing(name) in house.deletable()}

    def needs(file: Path, known: set[Path]) -> set[str]:
        known |= {file}
        helpers = re.findall(r"^from (tests\.[\w.]+) import", file.read_text(encoding="utf-8"), re.MULTILINE)
        paths = {house.ROOT / f"{name.replace('.', '/')}.py" for name in helpers}
        paths |= {folder / "conftest.py" for folder in file.parents if (folder / "conftest.py").is_file()}
        return house.closure(*house.imported(file), everywhere=True).union(
            *(needs(path, known) for path in paths - known)
        )

    files = [file for part in house.LIBRARY for file in (house.ROOT / "tests" / part).rglob("test_*.py")]
    return [file for file in sorted(files) if not gone & needs(file, set())]


@pytest.mark.long
def test_the_core_s_unit_tests_pass_without_the_wings(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(house.ROOT, copy, ignore=left_behind)
    for place in PLACES:
        shutil.rmtree(copy / place, ignore_errors=True)
        (copy / f"{place}.py").unlink(missing_ok=True)
    files = [str(file.relative_to(house.ROOT)) for file in files_of_the_core()]
    assert len(files) > 40
    command = [sys.executable, "-c", PYTEST, "-q", "-x", "-m", "unit", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, cwd=copy, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
