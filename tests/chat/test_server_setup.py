"""Addresses at which the page's and the server's commands cannot listen, told before a model is loaded."""

import pytest

from chat import web
from chat.server_setup import listening_socket, model_name
from chat.serving import __main__ as serving

EACH = pytest.mark.parametrize("main", [web.main, serving.main], ids=["page", "server"])


def refused(capsys, main, *flags: str) -> str:
    """The one line that the command ends with."""
    assert main(["--checkpoint_path", "nowhere", *flags]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and line.startswith("error: ")
    return line


@EACH
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use(capsys, main, host):
    with listening_socket(host, 0) as taken:
        port = str(taken.getsockname()[1])
        said = refused(capsys, main, "--host", host, "--port", port)
    assert said == f"error: --port {port}: another program listens there; stop it, or choose another port"


@EACH
@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_host_that_is_not_this_machine(capsys, main, host):
    assert f"--host {host}: it is not an address of this machine" in refused(capsys, main, "--host", host)


@EACH
@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_numbers_that_are_no_port(capsys, main, port):
    with pytest.raises(SystemExit) as ended:
        main(["--checkpoint_path", "nowhere", f"--port={port}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("is not a port: give a number from 0 to 65535")


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
