import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from utils import distributed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


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


def in_two_processes(work, tmp_path):
    """What each of two processes of a group says, forked from this one."""
    children = []
    for rank in range(2):
        said, says = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                store = dist.FileStore(str(tmp_path / "store"), 2)
                dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
                os.write(says, json.dumps(work()).encode())
            finally:
                os._exit(0)
        os.close(says)
        children.append((child, said))
    answers = []
    for child, said in children:
        os.waitpid(child, 0)
        answers.append(json.loads(os.read(said, 1 << 16)))
        os.close(said)
    return answers


def decide(fails):
    def decision():
        if not distributed.is_main_process():
            raise AssertionError("asked of another than the main process")
        if fails:
            raise OSError(28, "No space left on device")
        return "checkpoint-5"

    try:
        return distributed.decided_by_main(decision)
    except OSError as error:
        return str(error)


def test_everyone_says_theirs(tmp_path):
    said = in_two_processes(lambda: distributed.everyone({"rank": distributed.rank()}), tmp_path)
    assert said == [[{"rank": 0}, {"rank": 1}]] * 2


def test_what_the_main_process_decides(tmp_path):
    assert in_two_processes(lambda: decide(fails=False), tmp_path) == ["checkpoint-5"] * 2


def test_an_error_of_the_main_process_is_everyone_s(tmp_path):
    said = in_two_processes(lambda: decide(fails=True), tmp_path)
    assert said == ["[Errno 28] No space left on device"] * 2


def test_alone_everything_is_one_s_own():
    assert distributed.everyone(3) == [3]
    assert decide(fails=False) == "checkpoint-5" and "No space" in decide(fails=True)


ENDS_WITH_THREADS = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import torch
from utils.commands import end_process

def communicate():
    while True:
        torch.randn(20000).sort()

def write():
    time.sleep(0.3)
    print("written")

idle = ThreadPoolExecutor()  # as a library leaves one
idle.submit(print, "begun").result()
threading.Thread(target=communicate, daemon=True).start()
threading.Thread(target=write).start()
atexit.register(print, "tidied")
time.sleep(0.1)
end_process(75)
"""


def test_a_process_ends_with_its_code_whatever_torch_s_threads_do():
    ended = subprocess.run(
        [sys.executable, "-c", ENDS_WITH_THREADS], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 75, ended.stderr
    assert ended.stdout.split() == ["begun", "written", "tidied"]


@pytest.mark.parametrize("command", ["chat.web", "chat.serving.__main__"])
def test_a_command_logs_under_its_module_s_name(monkeypatch, command):
    """Python calls it __main__, of which nothing would be seen."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", importlib.util.find_spec(command), raising=False)
    assert distributed.get_logger("__main__").name == command
