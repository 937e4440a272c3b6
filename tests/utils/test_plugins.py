"""Modules of the user's own: found by path or by name, imported once, and named where they fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.commands import ROOT, UsageError
from utils.data import DataError, register_dataset
from utils.data.registry import DATASETS
from utils.plugins import lasting_name, load_plugins


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, on no path of modules; modules of before the test are those of after it."""
    monkeypatch.chdir(tmp_path)
    for name in ("modules", "path"):
        monkeypatch.setattr(sys, name, vars(sys)[name].copy())
    return tmp_path


@pytest.mark.parametrize("name", ["here.py", "here", "{folder}/here.py"])
def test_a_module_is_imported_once_under_its_name(folder, name):
    (folder / "here.py").write_text("with open('ran', 'a') as file:\n    file.write('x')\ndef read(): ...\n")
    for _ in range(2):
        load_plugins([name.format(folder=folder)])
    assert (folder / "ran").read_text() == "x"
    assert sys.modules["here"].read.__module__ == "here"


def test_a_file_has_a_name_for_other_folders_too(folder):
    (folder / "here.py").write_text("")
    names = ("here.py", "here", "json", "xml.dom", "/no/here.py")
    here = str(folder / "here.py")
    assert [lasting_name(name) for name in names] == [here, here, "json", "xml.dom", "/no/here.py"]


SPAWNS = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from utils.plugins import load_plugins
if __name__ == "__main__":
    load_plugins(["away/spoken.py"])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as workers:
        print(workers.submit(sys.modules["spoken"].answer).result())
"""


def test_spawned_workers_find_a_module_and_what_lies_beside_it(tmp_path):
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "beside.py").write_text("ANSWER = 42\n")
    (tmp_path / "away" / "spoken.py").write_text("import beside\ndef answer():\n    return beside.ANSWER\n")
    (tmp_path / "main.py").write_text(SPAWNS)
    command = [sys.executable, "main.py"]
    found = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.check_output(command, cwd=tmp_path, env=found, text=True) == "42\n"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nothing.py", None, "there is no file"),
        ("nothing", None, "no installed module of this name, and no file"),
        ("wrong.py", "\nimport nowhere_to_be_found\n", "wrong.py, line 2: ModuleNotFoundError"),
        ("wrong.py", "def (", "SyntaxError"),
        ("json.py", "", "another module called json"),
        ("taken.py", "", "another module called taken"),
    ],
)
def test_what_is_wrong_is_one_line(folder, name, text, said):
    if text is not None:
        (folder / name).write_text(text)
    (folder / "other").mkdir()
    (folder / "other" / "taken.py").write_text("")
    load_plugins(["other/taken.py"])
    with pytest.raises(UsageError, match=f"^--plugin {name}: .*{said}"):
        load_plugins([name])
    assert name.removesuffix(".py") in ("json", "taken") or name.removesuffix(".py") not in sys.modules


def test_a_name_is_given_to_one_dataset():
    llava = DATASETS["llava"]
    register_dataset(llava)  # the same again
    with pytest.raises(DataError, match="there is a dataset llava already"):
        register_dataset(DATASETS["llava_dial"].__class__(**{**vars(llava), "annotations": ()}))
    with pytest.raises(DataError, match=r"birds\.json would be taken for the path of a file"):
        register_dataset(llava.__class__(**{**vars(llava), "name": "birds.json"}))
