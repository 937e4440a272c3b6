import logging
import random

import numpy as np
import pytest
import torch

from utils import distributed


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def test_the_launcher_s_environment_says_who_we_are(second_of_two):
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (1, 2, 1)
    assert not distributed.is_main_process()


def test_one_process_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main_process()) == (0, 1, True)
    distributed.barrier()
    with distributed.main_process_first():
        pass


@pytest.fixture
def shown(capsys):
    """What reaches the screen; the loggers are left as they were."""
    loggers = [logging.getLogger(name) for name in ("utils", "training", "chat", "eval", "helper")]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]

    def log():
        distributed.configure_logging()
        logger = distributed.get_logger("utils.somewhere")
        logger.info("hello")
        logger.warning("careful: %d", 3)
        return capsys.readouterr().err.splitlines()

    yield log
    for each, (each.handlers, level, each.propagate) in zip(loggers, before, strict=True):
        each.setLevel(level)


def test_the_main_process_says_everything_once(shown):
    assert shown() == ["hello", "careful: 3"]


def test_other_processes_only_warn(shown, second_of_two):
    assert shown() == ["[rank 1] careful: 3"]


def test_seeds_all_generators():
    drawn = []
    for _ in range(2):
        distributed.seed_everything(7)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
