"""What every test needs before the libraries are imported, and which tests may be skipped."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Some tests fork; a child of several threads may wait for ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

STARTED = time.monotonic()
TESTS = Path(__file__).resolve().parent
LENGTHS = ("long", "slow")
PROCESSES = re.compile(r"\b(subprocess|multiprocessing|os\.fork|run_ranks)\b")

EXPECTED_SKIPS = {
    "there is no GPU here": "*",
    "not run: ": "tests/test_docs.py",  # each with a reason in NOT_RUN
    "no Chromium|there is no Chromium": "tests/*/test_*.py",
    "lmms-eval is not installed here": "tests/eval/test_lmms_eval_model.py",
    "could not import 'wandb'": "tests/training/metrics/test_trackers.py",
    "flash-attn is not installed": "tests/utils/model/test_mmca_gpu.py",
    "needs libaio and a compiler": "tests/training/checkpointing/test_resume.py",
    r"g\+\+ has no sanitizers here": "tests/utils/model/test_mmca_fused.py",
    "peaks of memory are Linux's to tell": "tests/helper/test_extract_qwen_vl.py",
    "/proc is of Linux": "tests/utils/data/readers/test_image_archive.py",
    "no mounts here": "tests/utils/data/test_shared_memory.py",
    "transformers has one name for it": "tests/helper/test_plan_memory.py",
}
"""Why a test may be skipped (the beginning of its reason), and in which files. Any other skip fails the session."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minutes", type=float, help="fail when so many minutes are over and tests are left: none is skipped"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Unrun(), "unrun")


@pytest.hookimpl(tryfirst=True)  # before tests are selected by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark quick tests as unit or integration; these first, long ones last: what fails quickly is told early.

    A file or a test that takes long for a unit, as it goes through many whole models, marks itself as integration.
    """
    for item in items:
        if not any(map(item.get_closest_marker, (*LENGTHS, "gpu", "integration"))):
            item.add_marker("integration" if starts_processes(item) else "unit")
    items.sort(key=lambda item: [item.get_closest_marker(length) is not None for length in LENGTHS])


def starts_processes(item: pytest.Item) -> bool:
    """Whether the file of a test, or of a fixture that it uses, speaks of processes."""
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    files = {item.path, *(Path(each[-1].func.__code__.co_filename) for each in fixtures)}
    return any(
        speaks_of_processes(file) for file in files if TESTS in file.parents and file != TESTS / "conftest.py"
    )


@cache
def speaks_of_processes(file: Path) -> bool:
    return PROCESSES.search(file.read_text(encoding="utf-8")) is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - STARTED > minutes * 60:
        left = len(item.session.items) - item.session.items.index(item)
        pytest.exit(
            f"{minutes:g} minutes are over and {left} tests are left, from {item.nodeid} on", returncode=1
        )
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")


class Unrun:
    """Says at the end which tests did not run; fails the session where a skip is not expected."""

    def __init__(self) -> None:
        self.unexpected: dict[str, str] = {}
        self.long: Counter[str] = Counter()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.long.update(file_of(item.nodeid) for item in items if item.get_closest_marker("long"))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = reason.removeprefix("Skipped: ")
            if not is_expected_skip(report.nodeid, reason):
                self.unexpected[report.nodeid] = reason

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.long:
            files = ", ".join(f"{file} {count}" for file, count in sorted(self.long.items()))
            terminalreporter.section(
                f"{sum(self.long.values())} long tests not selected (make test TESTS=long)"
            )
            terminalreporter.line(files)
        if self.unexpected:
            title = f"{len(self.unexpected)} skipped, but not in EXPECTED_SKIPS of tests/conftest.py"
            terminalreporter.section(title, red=True)
        for test, reason in self.unexpected.items():
            terminalreporter.line(f"{test}: {reason}")


def file_of(test: str) -> str:
    return test.split("::")[0]


def is_expected_skip(test: str, reason: str) -> bool:
    """Whether a test (or file) may be skipped for that reason."""
    return any(
        re.match(start, reason) and fnmatch(file_of(test), files) for start, files in EXPECTED_SKIPS.items()
    )


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Entry points called inside a test process redirect the log lines that later tests read."""
    loggers = [logging.getLogger(name) for name in ("utils", "training", "chat", "eval", "helper")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
