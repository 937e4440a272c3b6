"""The chat at a real terminal: keys go in, the screen comes out."""

import json
import os
import pty
import re
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
UP, LEFT, CTRL_C, CTRL_D, ENTER, ALT_ENTER = b"\x1b[A", b"\x1b[D", b"\x03", b"\x04", b"\r", b"\x1b\r"


class Terminal:
    """A chat that runs at a pseudo terminal."""

    def __init__(self, checkpoint: Path, state: Path, *flags: str) -> None:
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "xterm-256color",
            "XDG_STATE_HOME": str(state), "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "200", "LINES": "40",
        }  # fmt: skip
        command = [sys.executable, "-m", "chat.chat", "--checkpoint_path", str(checkpoint)]
        command += ["--device_map", "cpu", *flags]
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            signal.signal(
                signal.SIGINT, signal.SIG_DFL
            )  # ignored where the tests run in the background of a script
            os.chdir(ROOT)
            os.execve(sys.executable, command, environment)
        self._output = b""
        self._seen = 0  # characters that were waited for

    def type(self, *keys: bytes) -> None:
        for key in keys:
            os.write(self._terminal, key)

    def wait_for(self, text: str) -> str:
        """Read until `text` is on the screen; returns what stands before it, without colours."""
        while text not in (new := self._new()):
            self._read(new)
        before = new[: new.index(text)]
        self._seen += len(before) + len(text)
        return before

    def wait_for_more(self, characters: int) -> None:
        """Read until so much more is on the screen."""
        while len(new := self._new()) < characters:
            self._read(new)

    def _read(self, shown: str) -> None:
        ready, _, _ = select.select([self._terminal], [], [], 300)
        assert ready, shown
        self._output += os.read(self._terminal, 4096)

    def _new(self) -> str:
        return _without_codes(self._output)[self._seen :]

    def wait_for_end(self) -> int:
        try:
            while os.read(self._terminal, 4096):
                pass
        except OSError:  # the other side is closed
            pass
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return status

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._terminal)


def _without_codes(shown: bytes) -> str:
    return re.sub(
        r"\r|\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_=>])", "", shown.decode(errors="replace")
    )


@pytest.fixture
def terminal(checkpoint, tmp_path) -> Iterator[Terminal]:
    terminal = Terminal(checkpoint, tmp_path, "--generation_length_per_round", "1500")
    yield terminal
    terminal.close()


@pytest.mark.slow
def test_at_a_terminal(terminal, pictures, tmp_path):
    terminal.wait_for("> ")
    terminal.type(b"thrown away", CTRL_C)
    terminal.wait_for("Ctrl-D leaves.")
    terminal.wait_for("> ")  # what is typed before the prompt stands may be cut within a key's sequence
    terminal.type(
        f"'{pictures[0]}' '{pictures[1]}' Whta?".encode(), LEFT * 2, b"\x7f", b"\x1b[C", b"t", ENTER
    )
    assert "image 2: " in terminal.wait_for("first token")
    terminal.type(b"/set temperature 2", ENTER)
    terminal.wait_for("temperature 2, ")
    terminal.wait_for("> ")
    for _ in range(10):  # until an answer is long enough to be stopped
        terminal.type(b"Tell me everything", ENTER)
        terminal.wait_for("everything\n")
        terminal.wait_for_more(80)
        terminal.type(CTRL_C)
        said = terminal.wait_for("Ctrl-D leaves.")
        terminal.wait_for("> ")
        if "> " not in said.partition("first token")[2]:  # else the answer had ended, and a line was dropped
            break
    terminal.type(b"/ima", b"\t")
    terminal.wait_for("ge")  # what Tab completes comes when it has been found, whatever is typed meanwhile
    terminal.type(b"s", b"\x7f" * 20, b"/images", ENTER)
    assert "picture 0.png (24 x 20)" in terminal.wait_for("picture 1.png (24 x 20)")
    terminal.wait_for("> ")
    terminal.type(b"/set length 5", ENTER)
    terminal.wait_for("length 5\n")
    terminal.wait_for("> ")
    terminal.type(b"two", ALT_ENTER, b"lines", ENTER)
    terminal.wait_for("first token")
    terminal.wait_for("> ")
    terminal.type(UP, UP, UP, ENTER)  # over the two lines, to the setting
    terminal.wait_for("length 5\n")
    terminal.wait_for("> ")
    terminal.type(b"/save ", str(tmp_path / "kept.json").encode(), ENTER)
    terminal.wait_for("Saved")
    terminal.wait_for("> ")
    terminal.type(CTRL_D)
    assert terminal.wait_for_end() == 0
    history = tmp_path / "visualchat" / "history"
    assert "+two\n+lines" in history.read_text() and history.stat().st_mode & 0o077 == 0
    kept = json.loads((tmp_path / "kept.json").read_text())["messages"]
    assert kept[0]["content"][-1]["text"] == "What?" and kept[-2]["content"][-1]["text"] == "two\nlines"
