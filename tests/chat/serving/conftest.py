"""The server with a tiny model: in this process for what is quick, in one of its own for what is measured."""

import base64
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import PIL.Image
import pytest
import uvicorn

from chat.generation.decoding import Sampling
from chat.server_setup import Limits
from chat.serving.app import build_app
from chat.serving.images import Sources
from chat.serving.service import Serving
from chat.session import ChatSession
from tests.ranks import free_port

ROOT = Path(__file__).resolve().parents[3]
LENGTH = 6  # tokens of an answer


def png(number: int, size: tuple[int, int] = (24, 20)) -> bytes:
    """A picture of random pixels, another for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def user(text: str, *urls: str) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


GOLDEN = {
    "model": "tiny",
    "messages": [
        user("What?", data_url(png(1)), data_url(png(2))),
        assistant("red"),
        user("And?", data_url(png(3))),
    ],
    "max_tokens": LENGTH,
    "temperature": 1.0,
    "seed": 7,
}


@dataclass(frozen=True)
class Server:
    """A server that runs, and a client of it."""

    url: str
    client: httpx.Client
    pid: int
    log: Path | None = None  # of a process of its own

    def openai(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def ask(self, **body: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json={"model": "tiny", "max_tokens": LENGTH, **body})

    def text(self, **body: Any) -> str:
        response = self.ask(**body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    def wait_until_idle(self) -> dict[str, Any]:
        """What /health says once no request is in the house."""
        for _ in range(1200):
            health = self.client.get("/health").json()
            if not (health["answering"] or health["waiting"] or health["requests"]):
                return health
            time.sleep(0.05)
        raise AssertionError(health)

    def resident_bytes(self) -> int:
        return self._memory("VmRSS")

    def most_resident_bytes(self) -> int:
        """Since `forget_most`."""
        return self._memory("VmHWM")

    def forget_most(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _memory(self, name: str) -> int:
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
            if ":" in line
        )
        return int(fields[name].split()[0]) * 1024

    def cpu_seconds(self) -> float:
        """Of the server so far, whatever else the machine is doing."""
        user, system = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@pytest.fixture(scope="session")
def serve(model_and_processor) -> Callable[..., Any]:
    """Runs the server in a thread: `with serve(slots=2, key="...") as server`."""

    @contextmanager
    def serve(limits: Limits | None = None, **settings: Any) -> Iterator[Server]:
        settings = {"sources": Sources(), "sampling": Sampling(), "max_new_tokens": LENGTH, **settings}
        serving = Serving("tiny", limits or Limits(), **settings)
        app = build_app(ChatSession(*model_and_processor), serving)
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=60))
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            thread = threading.Thread(target=running.run, args=([listening],))
            thread.start()
            while not running.started:
                time.sleep(0.01)
            limits = httpx.Limits(max_connections=None)
            try:
                with httpx.Client(base_url=url, timeout=120, limits=limits) as client:
                    yield Server(url, client, os.getpid())
            finally:  # a test that fails must not leave it running
                running.should_exit = True
                thread.join()

    return serve


@pytest.fixture(scope="session")
def server(serve) -> Iterator[Server]:
    """One for all tests that need nothing special."""
    with serve() as server:
        yield server


@contextmanager
def server_process(checkpoint: Path, folder: Path, *flags: str) -> Iterator[tuple[Server, subprocess.Popen]]:
    """The command, as people start it, with `folder` for its temporary files."""
    port = free_port()
    command = [sys.executable, "-m", "chat.serving", "--checkpoint_path", checkpoint, "--device_map", "cpu"]
    command += ["--port", str(port), "--model_name", "tiny"]
    command += ["--generation_length_per_round", str(LENGTH), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    url, log = f"http://127.0.0.1:{port}", folder.with_suffix(".log")
    try:
        with log.open("w") as stderr:
            process = subprocess.Popen(command, env=environment, cwd=folder, stderr=stderr)
        with httpx.Client(base_url=url, timeout=120) as client:
            server = Server(url, client, process.pid, log)
            while True:
                try:
                    client.get("/health")
                    break
                except httpx.ConnectError:
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.2)
            yield server, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `own_process` works and would put temporary files."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="session")
def own_process(checkpoint, served_folder) -> Iterator[Server]:
    """A server in a process of its own, whose memory and files can be counted."""
    with server_process(checkpoint, served_folder) as (server, _):
        yield server


@pytest.fixture(scope="session")
def golden(server) -> str:
    """The text of the golden request."""
    return server.text(**GOLDEN)


def assert_error(response: httpx.Response, *statuses: int) -> dict[str, Any]:
    """A refusal in OpenAI's shape; returns it."""
    assert response.status_code in statuses if statuses else 400 <= response.status_code < 500, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and 0 < len(error["message"]) < 600
    return error


def logged(caplog: pytest.LogCaptureFixture, response: httpx.Response) -> str:
    """The line that the log of a server in this process holds of a request; it comes when all has been sent."""
    for _ in range(1200):
        for line in caplog.messages:
            if line.endswith(f"[{response.headers['x-request-id']}]"):
                return line
        time.sleep(0.05)
    raise AssertionError(caplog.messages)
