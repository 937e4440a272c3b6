"""What every test needs before the libraries are imported: no network, no forked threads."""

import logging
import os
import time
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Some tests fork; a child of several threads may wait for ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

STARTED = time.monotonic()


LENGTHS = ("long", "slow")


def pytest_addoption(parser: pytest.Parser) -> None:
    for length in LENGTHS:
        parser.addoption(
            f"--{length}_until",
            type=float,
            metavar="MINUTES",
            help=f"begin no test marked {length} later than this; those left out are reported as skipped",
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, long ones last: what fails quickly is told early."""
    items.sort(key=lambda item: [item.get_closest_marker(length) is not None for length in LENGTHS])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    for length in LENGTHS:
        limit = item.config.getoption(f"--{length}_until")
        if limit is not None and item.get_closest_marker(length) and time.monotonic() - STARTED > limit * 60:
            pytest.skip(f"no time left for {length} tests after {limit:g} minutes")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Entry points called inside a test process redirect the log lines that later tests read."""
    loggers = [logging.getLogger(name) for name in ("utils", "training", "chat", "eval", "helper")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
