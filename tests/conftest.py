"""What every test needs before the libraries are imported: no network, no forked tokenizer threads."""

import logging
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Entry points called inside a test process redirect the log lines that later tests read."""
    loggers = [logging.getLogger(name) for name in ("utils", "training", "chat", "eval", "helper")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
