"""A test that is skipped for a reason that is not on the list, or for lack of time, fails the session; tiers."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import pytest

def test_passes():
    pass

{decorator}
def test_other():
    pass

def test_known_failure():
    pytest.xfail("known")
"""
SKIP = "@pytest.mark.skip(reason={!r})"


def session(folder: Path, decorator: str, *words: str) -> tuple[int, str]:
    """Exit code and output of a session over a file with that decorator, under this project's conftest.py."""
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    (folder / "tests" / "test_some.py").write_text(TESTS.format(decorator=decorator))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_an_unexpected_skip_fails_the_session_and_is_named(tmp_path: Path) -> None:
    code, said = session(tmp_path, SKIP.format("it failed yesterday"))
    assert code == 1 and "1 skipped, but not in EXPECTED_SKIPS" in said
    assert "tests/test_some.py::test_other: it failed yesterday" in said


def test_expected_skips_and_known_failures_do_not(tmp_path: Path) -> None:
    code, said = session(tmp_path, SKIP.format("there is no GPU here"))
    assert code == 0 and "1 skipped" in said and "EXPECTED_SKIPS" not in said


def test_an_expected_reason_counts_in_its_files_alone(tmp_path: Path) -> None:
    code, said = session(tmp_path, SKIP.format("could not import 'wandb'"))
    assert code == 1 and "1 skipped, but not in EXPECTED_SKIPS" in said


def test_tests_left_when_the_time_is_over_fail_the_session(tmp_path: Path) -> None:
    code, said = session(tmp_path, "", "--minutes", "0")
    assert code == 1
    assert "0 minutes are over and 3 tests are left, from tests/test_some.py::test_passes on" in said


def test_long_tests_that_are_not_selected_are_counted_by_file(tmp_path: Path) -> None:
    code, said = session(tmp_path, "@pytest.mark.long", "-m", "not long")
    assert code == 0
    assert "1 long tests not selected" in said and "tests/test_some.py 1" in said


def test_a_quick_test_is_a_unit_test_unless_its_file_speaks_of_processes(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "processes").mkdir()
    code, said = session(tmp_path / "plain", "", "-m", "unit")
    assert code == 0 and "2 passed, 1 xfailed" in said
    code, said = session(tmp_path / "processes", "import subprocess", "-m", "integration")
    assert code == 0 and "2 passed, 1 xfailed" in said
