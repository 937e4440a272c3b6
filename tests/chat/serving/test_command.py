"""The command: how it starts, what it refuses, and how it ends."""

import signal
import threading

import httpx
import pytest

from chat.serving import __main__ as command
from tests.chat.serving.conftest import GOLDEN, data_url, png, server_process, user


@pytest.mark.slow
def test_told_to_stop_it_finishes_what_is_in_flight(checkpoint, tmp_path):
    flags = ["--max_tokens", "400", "--slots", "1"]
    with server_process(checkpoint, tmp_path, *flags) as (server, process):
        body = {**GOLDEN, "max_tokens": 400, "temperature": 0, "stream": True}
        expected = server.text(**{**body, "stream": False})
        results: list[str] = []

        def whole() -> None:
            results.append(server.text(**{**body, "stream": False}))

        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as stream:
            lines = stream.iter_lines()
            next(lines)
            waiting = threading.Thread(target=whole)
            waiting.start()
            while server.client.get("/health").json()["requests"] < 2:
                pass
            process.send_signal(signal.SIGTERM)
            said = list(lines)
        waiting.join()
        assert said[-2] == "data: [DONE]" and results == [expected]
        assert process.wait(timeout=120) == -signal.SIGTERM
        assert "Traceback" not in server.log.read_text()


def test_its_address_and_its_requests_are_in_its_log(own_process):
    response = own_process.ask(messages=[user("What?", data_url(png(1)))], max_tokens=2)
    assert response.status_code == 200
    own_process.client.get("/health")
    log = own_process.log.read_text().splitlines()  # it has answered since
    assert log.count(f"serving tiny at {own_process.url}/v1") == 1
    (line,) = [line for line in log if response.headers["x-request-id"] in line]
    assert line.startswith("POST /v1/chat/completions 200 in ") and "images 1" in line
    assert not any("/health" in line for line in log)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--checkpoint_path", "nowhere"], "there is no checkpoint folder nowhere"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--allow_images_in", "nowhere"], "there is no such folder"),
        (["--allow_networks", "10.0.0.0/99"], "10.0.0.0/99"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1: it is not an address of this machine"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, flags, words):
    assert command.main(["--checkpoint_path", str(tmp_path), *flags]) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert message.startswith("error: ") and words in message


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/path"])
def test_what_is_no_origin_is_told(capsys, origin):
    with pytest.raises(SystemExit) as ended:
        command.main(["--checkpoint_path", "nowhere", "--allow_origins", origin])
    assert ended.value.code == 2
    assert "is no origin: give https://app.example.org, or *" in capsys.readouterr().err.splitlines()[-1]


def test_it_listens_on_this_machine_only_and_takes_its_key_from_the_environment(monkeypatch):
    def serving(*flags: str):
        return command._serving(command._parser().parse_args(["--checkpoint_path", "runs/7b", *flags]))

    monkeypatch.setenv(command.KEY_VARIABLE, "secret")
    plain = serving()
    assert (plain.key, plain.name) == (
        "secret",
        "7b",
    ) and plain.sources.remote is plain.sources.folder is None
    monkeypatch.delenv(command.KEY_VARIABLE)
    opened = serving("--host", "0.0.0.0", "--allow_remote_images")
    assert opened.key is None and opened.sources.remote is not None
    assert opened.hosts is None is not plain.hosts
