"""Who is answered when: the queue, clients that leave, answers at once, and what a session remembers."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from chat.generation import Generator, Sampling
from chat.server_setup import Limits
from chat.session import ChatSession
from tests.chat.serving.conftest import GOLDEN, Server, assert_error, assistant, data_url, png, user
from utils.conversation import Image, Turn


@pytest.fixture
def gate(monkeypatch) -> Iterator[threading.Event]:
    """As long as it is not set, answers stop after their first token, which in the golden one is a piece."""
    gate = threading.Event()
    step = Generator.step

    def step_through_the_gate(self):
        if gate.is_set():
            return step(self)
        time.sleep(0.01)
        return []

    monkeypatch.setattr(Generator, "step", step_through_the_gate)
    yield gate
    gate.set()


def start(server: Server) -> httpx.Response:
    """A stream of which the first piece has come."""
    request = server.client.build_request("POST", "/v1/chat/completions", json={**GOLDEN, "stream": True})
    response = server.client.send(request, stream=True)
    assert response.status_code == 200
    return response


def test_a_full_queue_sends_away(serve, gate):
    with serve(slots=1, limits=Limits(queue=1)) as server, ThreadPoolExecutor() as pool:
        stream = start(server)
        second = pool.submit(server.ask, **GOLDEN)
        while server.client.get("/health").json()["waiting"] == 0:
            time.sleep(0.01)
        response = server.ask(**GOLDEN)
        assert_error(response, 429)
        assert response.headers["retry-after"] == "1"
        gate.set()
        assert stream.read().endswith(b"data: [DONE]\n\n")
        assert second.result().status_code == 200
        server.wait_until_idle()


def leave(server: Server, count: int) -> None:
    """Clients that go away: before their turn, in the middle of a stream, and while they wait for the whole."""
    for number in range(count):
        with httpx.Client(base_url=server.url) as client:
            body = {**GOLDEN, "stream": number % 3 != 0}
            request = client.build_request("POST", "/v1/chat/completions", json=body)
            if number % 3 == 1:
                client.send(request, stream=True).close()
            else:
                with pytest.raises(httpx.TimeoutException):
                    request.extensions["timeout"] = {"read": 0.02 * (1 + number % 2)}
                    client.send(request, stream=True).read()


@pytest.mark.parametrize("count", [6, pytest.param(50, marks=pytest.mark.long)])
def test_clients_that_leave_free_their_slot(serve, gate, golden, count):
    with serve(slots=2, limits=Limits(queue=8)) as server:
        leave(server, count)
        server.wait_until_idle()  # the gate is shut: nobody was answered
        gate.set()
        assert server.text(**GOLDEN) == golden


def images_of(seed: int) -> list[bytes]:
    client, number = divmod(seed, 1000)
    return [png(1000 * client + (number + each) % 4) for each in range(1 + number % 2)]


def body_of(seed: int) -> dict:
    """A client's request: its own images and seed, now and then a second round."""
    messages = [user(f"What is {seed}?", *map(data_url, images_of(seed)))]
    if seed % 3 == 0:
        messages += [assistant("red"), user("Why?")]
    return {"messages": messages, "temperature": 1.0, "seed": seed, "max_tokens": 4}


def alone(model_and_processor, seed: int) -> str:
    """What a fresh session says."""
    session = ChatSession(
        *model_and_processor, max_new_tokens=4, sampling=Sampling(temperature=1.0, seed=seed)
    )
    images = tuple(map(Image, images_of(seed)))
    if seed % 3 == 0:
        session.load([Turn(f"What is {seed}?", "red", images)])
        return "".join(session.ask("Why?"))
    return "".join(session.ask(f"What is {seed}?", images))


def test_many_clients_get_what_they_would_get_alone(serve, model_and_processor):
    with serve() as server:

        def ask_all(client: int) -> dict[int, str]:
            with httpx.Client(base_url=server.url, timeout=600) as own:
                mine = Server(server.url, own, server.pid)
                return {seed: mine.text(**body_of(seed)) for seed in range(1000 * client, 1000 * client + 10)}

        with ThreadPoolExecutor(8) as pool:
            answers = {seed: text for said in pool.map(ask_all, range(8)) for seed, text in said.items()}
    assert answers == {seed: alone(model_and_processor, seed) for seed in answers}


def test_a_long_dialogue_costs_its_new_tokens_only(serve, work):
    with serve(slots=2) as server:
        messages, before = [], 0
        for number in range(20):
            messages.append(user("And now?", *[data_url(png(number))] * (number < 2)))
            work.update(tokens=0, images=0)
            answer = server.ask(messages=messages, temperature=0).json()
            prompt, said = (answer["usage"][f"{part}_tokens"] for part in ("prompt", "completion"))
            if number > 1:
                assert work["images"] == 0 and work["tokens"] <= prompt - before + said
            before = prompt
            messages.append(assistant(answer["choices"][0]["message"]["content"]))
        assert work["tokens"] < prompt / 8
