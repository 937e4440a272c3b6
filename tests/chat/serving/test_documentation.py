"""Every command of docs/chat.md, with a tiny checkpoint in place of a trained one."""

import json
import re
import shlex
import subprocess
from io import StringIO

import pytest

from chat import chat, web
from chat.serving import __main__ as serving
from tests.chat.serving.conftest import ROOT

TEXT = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()
]
PROGRAMS = {"chat.chat": chat, "chat.web": web, "chat.serving": serving}


def words(command: str, checkpoint) -> list[str]:
    """Those behind `python -m`, the module first."""
    split = [word.replace("$CHECKPOINT", str(checkpoint)) for word in shlex.split(command)]
    assert split[:2] == ["python", "-m"]
    return split[2:]


def test_all_kinds_of_commands_are_there():
    assert len(COMMANDS) >= 6 and {words(each.split(" | ")[-1], "x")[0] for each in COMMANDS} == set(PROGRAMS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(command, checkpoint, monkeypatch, capsys):
    *before, command = command.split(" | ")
    module, *arguments = words(command, checkpoint)
    if module != "chat.chat":  # those run until they are told to stop: tests of their own start them
        assert PROGRAMS[module]._parser().parse_args(arguments).checkpoint_path == str(checkpoint)
        return
    monkeypatch.chdir(ROOT)
    lines = (
        subprocess.run(before[0], shell=True, capture_output=True, text=True, check=True).stdout
        if before
        else ""
    )
    monkeypatch.setattr("sys.stdin", StringIO(lines))
    assert chat.main([*arguments, "--device_map", "cpu", "--generation_length_per_round", "4"]) == 0
    answers = capsys.readouterr().out.splitlines()
    asked = (
        1 if before else len(arguments[arguments.index("--prompt") + 1 :]) if "--prompt" in arguments else 0
    )
    assert len(answers) == asked
    if "--json" in arguments:
        assert all(json.loads(line)["answer"] for line in answers)


def test_the_program(server, monkeypatch, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(program.replace("http://127.0.0.1:8000", server.url), "docs/chat.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_flags_that_are_spoken_of_are_there():
    flags = {flag for module in PROGRAMS.values() for flag in module._parser()._option_string_actions}
    assert {flag for flag in re.findall(r"--[a-z_0-9]+", TEXT)} <= flags
