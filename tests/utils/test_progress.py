"""A bar for people at a terminal, and a line now and then for those who read a log file."""

import io
import sys

import pytest

from utils import commands
from utils.commands import progress


def put_up(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> io.StringIO:
    """A terminal, or a log file, and what goes to it."""
    screen = io.StringIO()
    screen.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_sees_a_bar(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    shown = put_up(monkeypatch, is_terminal)
    with progress("SN.json", 3_000_000, "B") as advance:
        advance(1_500_000)
        advance(1_500_000)
    assert ("SN.json" in shown.getvalue()) == is_terminal
    assert ("/3.00M" in shown.getvalue()) == is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_log_file_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_terminal: bool
) -> None:
    caplog.set_level("INFO")
    put_up(monkeypatch, is_terminal)
    seconds = iter([0, 10, 29, 31, 60, 62])
    monkeypatch.setattr(commands.time, "perf_counter", lambda: next(seconds))
    with progress("checking", 5000, "conversations") as advance:
        for bad in (0, 0, 1, 1, 2):
            advance(1000, bad=bad)
    monkeypatch.undo()
    lines = ["checking: 3,000 of 5,000 conversations, 1 bad in 31 s"]
    lines += ["checking: 5,000 of 5,000 conversations, 2 bad in 62 s"]
    assert caplog.messages == ([] if is_terminal else lines)
