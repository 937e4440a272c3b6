"""What `pip install -e .` is told: the version, the requirements and the extras, each from its one list."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from visualchat import __version__

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {"train", "chat", "serve", "eval", "dev"}
METADATA = """
from email import message_from_string
from setuptools.build_meta import prepare_metadata_for_build_editable as prepare
folder = prepare("out")
text = open(f"out/{folder}/METADATA").read()
found = message_from_string(text)
print("version", found["Version"])
for each in found.get_all("Provides-Extra"): print("extra", each)
for each in found.get_all("Requires-Dist"): print("requires", each)
print("script", open(f"out/{folder}/entry_points.txt").read().split()[-3:])
print("packages", open(f"out/{folder}/top_level.txt").read().split())
"""


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What setuptools makes of the project's files in a folder of their own, by kind."""
    folder = tmp_path_factory.mktemp("project")
    for path in [
        *ROOT.glob("requirements*.txt"),
        *map(ROOT.joinpath, ("setup.py", "pyproject.toml", "visualchat.py")),
    ]:
        shutil.copy(path, folder)
    for package in ("training", "chat", "eval", "helper", "utils", "tests", "output"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
    (folder / "out").mkdir()
    done = subprocess.run([sys.executable, "-c", METADATA], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        kind, _, value = line.partition(" ")
        if kind in ("version", "extra", "requires", "script", "packages"):
            found.setdefault(kind, []).append(value)
    return found


def names_in(file: str) -> set[str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    return {line.split(">")[0].split("=")[0] for line in lines if line and not line.startswith("-r")}


def test_every_requirement_is_one_of_the_base_or_of_an_extra(metadata: dict[str, list[str]]) -> None:
    files = {path.name for path in ROOT.glob("requirements*.txt")}
    wanted = set().union(*map(names_in, files))
    assert {
        each.split(">")[0].split("<")[0].split(";")[0].split("=")[0] for each in metadata["requires"]
    } == wanted
    base = [each for each in metadata["requires"] if "extra ==" not in each]
    assert any(each.startswith("torch>=") for each in base) and not any("gradio" in each for each in base)
    assert any(each.startswith("gradio") and 'extra == "serve"' in each for each in metadata["requires"])
    assert set(metadata["extra"]) >= EXTRAS
    assert "base" not in metadata["extra"]


def test_version_command_and_packages(metadata: dict[str, list[str]]) -> None:
    assert metadata["version"] == [__version__]
    assert metadata["script"] == ["['visualchat', '=', 'visualchat:run']"]
    assert metadata["packages"] == ["['chat', 'eval', 'helper', 'training', 'utils', 'visualchat']"]


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.split("\n## ")[1].startswith(__version__)
