"""The page's command: addresses at which it cannot listen, told before a model is loaded."""

import socket

import pytest

from chat import web
from chat.server_setup import model_name


@pytest.fixture
def taken() -> int:
    """A port of this machine at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refused(capsys, *flags: str) -> str:
    """The one line that the command ends with."""
    assert web.main(["--checkpoint_path", "nowhere", *flags]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and line.startswith("error: ")
    return line


def test_a_port_in_use(capsys, taken):
    assert f"--port {taken}: another program listens there" in refused(capsys, "--port", str(taken))


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "nowhere.invalid"])
def test_a_host_that_is_not_this_machine(capsys, host):
    assert f"--host {host}: it is not an address of this machine" in refused(capsys, "--host", host)


@pytest.mark.parametrize("port", ["65536", "-1", "many", "80.5"])
def test_numbers_that_are_no_port(capsys, port):
    with pytest.raises(SystemExit) as ended:
        web.main(["--checkpoint_path", "nowhere", f"--port={port}"])
    assert ended.value.code == 2
    assert f"argument --port: {port} is not a port" in capsys.readouterr().err


@pytest.mark.parametrize(
    "checkpoint, name",
    [
        ("output/tiny/final", "tiny"),
        ("output/tiny/best/", "tiny"),
        ("output/tiny", "tiny"),
        ("output/tiny/checkpoint-200", "tiny at step 200"),
        ("some-people/chat-7b", "chat-7b"),  # on the hub
        ("/", "model"),
    ],
)
def test_a_checkpoint_is_called_after_its_run(checkpoint, name):
    assert model_name(checkpoint) == name
