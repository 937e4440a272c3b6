"""The bar is for people at a terminal, and nowhere else."""

import io
import sys

import pytest

from utils.data.progress import byte_bar


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_sees_the_bytes_and_a_log_file_sees_nothing(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    shown = io.StringIO()
    shown.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", shown)
    with byte_bar("SN.json", 3_000_000) as advance:
        advance(1_500_000)
        advance(1_500_000)
    assert ("SN.json" in shown.getvalue()) == is_terminal
    assert ("/3.00M" in shown.getvalue()) == is_terminal
