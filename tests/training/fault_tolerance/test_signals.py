"""What asks a run to stop."""

import os
import signal
import threading

import pytest

from training.fault_tolerance.signals import StopRequest
from utils.data.workers import SIGNALS


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
