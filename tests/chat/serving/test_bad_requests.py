"""Requests that cannot be answered: none of them breaks the server, all are told why in one shape."""

import json
import random
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx
import pytest

from chat.server_setup import Limits
from tests.chat.serving.conftest import GOLDEN, Server, assert_error, assistant, data_url, png, user

JSON = {"Content-Type": "application/json"}
PICTURE = data_url(png(1))


def body(**changes: Any) -> bytes:
    return json.dumps({**GOLDEN, **changes}).encode()


def messages(*each: Any) -> bytes:
    return body(messages=list(each))


def image(url: Any) -> bytes:
    return messages({"role": "user", "content": [{"type": "image_url", "image_url": url}]})


HAND_MADE: dict[str, bytes] = {
    "empty": b"",
    "no json": b"hello",
    "half of it": body()[: len(body()) // 2],
    "not utf-8": b'{"model": "\xff\xfe"}',
    "utf-16": json.dumps(GOLDEN).encode("utf-16"),
    "with a mark": b"\xef\xbb\xbf" + body(),
    "a list": b"[]",
    "nothing in it": b"{}",
    "deep lists": b"[" * 90_000,
    "deep in messages": b'{"model": "tiny", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "many values": b'{"model": "tiny", "messages": [' + b"0," * 200_000 + b"0]}",
    "half a character": b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "a zero byte in json": b'{"model": "tiny"\x00}',
    "too many messages": messages(*[user("What?"), assistant("red")] * 200, user("And?")),
    "no role": messages({"content": "What?"}),
    "a role of its own": messages({"role": "tool", "content": "What?"}),
    "no content": messages({"role": "user"}),
    "content is an object": messages({"role": "user", "content": {"type": "text", "text": "What?"}}),
    "a blank question": messages(user(" \n\t ")),
    "the answer last": messages(user("What?"), assistant("red")),
    "system in the middle": messages(user("What?"), {"role": "system", "content": "Be brief."}),
    "an image of the system": messages({**user("Be brief.", PICTURE), "role": "system"}, user("What?")),
    "an image of the assistant": messages(user("What?"), {**user("red", PICTURE), "role": "assistant"}, user("And?")),
    "a part of another kind": messages({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}),
    "a part without its text": messages({"role": "user", "content": [{"type": "text"}]}),
    "a reserved word": messages(user("Look: <image>")),
    "a text beyond the context": messages(user("many words " * 3000)),
    "a text far beyond it": messages(user("many words " * 300_000)),
    "an image without url": image({}),
    "an empty url": image({"url": ""}),
    "a data url without data": image({"url": "data:image/png;base64,"}),
    "no image": image({"url": data_url(b"hello" * 100)}),
    "half an image": image({"url": data_url(png(1)[:-200])}),
    "too many images": messages(user("What?", *[PICTURE] * 9)),
    "no tokens": body(max_tokens=0),
    "temperature below 0": body(temperature=-0.1),
    "temperature above 2": body(temperature=2.1),
    "temperature is no number": body(temperature=float("nan")),
    "top_p above 1": body(top_p=1.1),
    "top_k below -1": body(top_k=-2),
    "a penalty of 0": body(repetition_penalty=0),
    "a seed of 64 bits and more": body(seed=2**63),
    "five stops": body(stop=["a", "b", "c", "d", "e"]),
    "two answers at once": body(n=2),
    "tools": body(tools=[{"type": "function", "function": {"name": "f"}}]),
    "probabilities": body(logprobs=True),
    "a field of its own": body(colour="red"),
}  # fmt: skip


def post(server: Server, content: bytes, **headers: str) -> httpx.Response:
    return server.client.post("/v1/chat/completions", content=content, headers={**JSON, **headers})


def test_mistakes_are_told_and_the_golden_answer_stays_golden(server, golden):
    for number, (name, content) in enumerate(HAND_MADE.items(), start=1):
        assert assert_error(post(server, content))["type"] == "invalid_request_error", name
        if number % 20 == 0:
            assert server.text(**GOLDEN) == golden


@pytest.mark.parametrize(
    "name, words",
    [
        ("no role", "messages[0].role: Field required"),
        ("a part without its text", "messages[0].content[0].text: Field required"),
        ("an image without url", "messages[0].content[0].image_url.url: Field required"),
        ("a field of its own", "unknown field colour"),
        ("two answers at once", "n=2 is not supported here"),
        ("a text beyond the context", "leaves no room for an answer"),
        ("system in the middle", "messages[1]: system messages must come first"),
        ("a reserved word", "the text of a user contains '<image>'"),
        ("a blank question", "messages[0]: a question needs a text or an image"),
    ],
)
def test_it_is_told_where_the_mistake_is(server, name, words):
    assert words in assert_error(post(server, HAND_MADE[name]))["message"]


def test_what_is_wrong_with_a_request_around_its_body(server, golden):
    url = "/v1/chat/completions"
    client = server.client
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert_error(client.request(method, url), 405)
    for route in ("/", "/v1", "/v1/responses", "/v1/chat/completions/", "/v1/../health/x", "/%00"):
        assert_error(client.post(route), 404)
    assert_error(client.get("/v1/models/a/b"), 404)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert_error(client.post(url, content=body(), headers={"Content-Type": kind}), 415)
    assert post(server, body(), **{"Content-Type": "application/json; charset=utf-8"}).status_code == 200
    assert server.text(**GOLDEN) == golden


def test_a_body_that_never_comes(serve):
    with serve(limits=Limits(body_seconds=0.3)) as server:

        def half() -> Iterator[bytes]:
            yield body()[:50]
            time.sleep(1)
            yield body()[50:]

        assert_error(server.client.post("/v1/chat/completions", content=half(), headers=JSON), 408)
        server.wait_until_idle()


def generated(seed: int) -> Iterator[bytes]:
    """Requests like the golden one, with one to three things changed at random."""
    draw = random.Random(seed)
    while True:
        request = json.loads(json.dumps(GOLDEN | {"stream": draw.random() < 0.3}))
        for _ in range(draw.randint(1, 3)):
            _spoil(request, draw)
        content = json.dumps(request).encode()
        if draw.random() < 0.3:
            place = draw.randrange(len(content))
            junk = draw.randbytes(draw.randint(0, 5))
            content = content[:place] + junk + content[place + draw.choice([0, 1, 50]) :]
        yield content


JUNK = [None, True, False, 0, -1, 1.5, 10**30, "", " ", "\x00", "<image>", "null", [], {}, [[]], [None]]
JUNK += [{"": None}, "é" * 999]


def _spoil(node: Any, draw: random.Random) -> None:
    """Change something at a random place below `node`."""
    while True:
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not places:
            return
        place = draw.choice(places)
        if isinstance(node[place], dict | list) and draw.random() < 0.75:
            node = node[place]
            continue
        match draw.randrange(4):
            case 0:
                del node[place]
            case 1 if isinstance(node, dict):
                node[draw.choice(["", "role", "extra", "type", "n"])] = node.pop(place)
            case 2 if isinstance(node, list):
                node.insert(place, node[place])
            case _:
                node[place] = draw.choice(JUNK)
        return


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.long)])
def test_generated_mistakes(server, golden, count):
    refused = 0
    for number, content in enumerate(islice(generated(seed=1), count), start=1):
        response = post(server, content)
        if response.status_code != 200:
            assert_error(response)
            refused += 1
        if number % 20 == 0:
            assert server.text(**GOLDEN) == golden
    assert refused > count // 2
    server.wait_until_idle()
