"""What asks a run to stop."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from training.fault_tolerance.signals import StopRequest
from utils.data.workers import SIGNALS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def request_to_stop():
    """One that listens; afterwards the signals are the test run's again."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    request = StopRequest()
    request.listen()
    yield request
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_leaves_a_note(request_to_stop, number):
    assert request_to_stop.reason is None
    os.kill(os.getpid(), number)
    assert request_to_stop.reason == ("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)


def test_a_second_ctrl_c_leaves_at_once(request_to_stop, capfd):
    left = threading.Event()
    request_to_stop.leave = left.set
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)  # DeepSpeed's launcher sends it after Ctrl-C
    assert not left.wait(1) and request_to_stop.reason == "Ctrl-C"
    os.kill(os.getpid(), signal.SIGINT)
    assert left.wait(30)
    assert "press it again to stop at once" in capfd.readouterr().err


RANK = """
import sys, time
from training.fault_tolerance.signals import StopRequest
request = StopRequest()
print("ready", len(request._launchers), flush=True)
while request.reason is None:
    time.sleep(0.05)
print(request.reason, flush=True)
"""
LAUNCHER = """
import subprocess, sys, time
inner = sys.argv[1:]
subprocess.Popen([sys.executable, *inner])
time.sleep(60)
"""


@pytest.mark.parametrize("killed", ["outer", "inner"])
def test_the_end_of_a_launcher_asks_to_stop(tmp_path, killed):
    """Two launchers, one below the other, as DeepSpeed's."""
    launcher = tmp_path / "deepspeed_launcher.py"
    launcher.write_text(LAUNCHER)
    rank = tmp_path / "rank.py"
    rank.write_text(RANK)
    outer = subprocess.Popen(
        [sys.executable, launcher, launcher, rank],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert outer.stdout.readline() == "ready 2\n"
        [inner] = psutil.Process(outer.pid).children()
        (inner if killed == "inner" else outer).kill()
        assert outer.stdout.readline() == "the end of its launcher\n"
    finally:
        os.killpg(outer.pid, signal.SIGKILL)
        outer.wait()
