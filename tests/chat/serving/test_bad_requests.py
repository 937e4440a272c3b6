"""Requests that cannot be answered: none of them breaks the server, all are told why in one shape."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from chat.server_setup import Limits
from tests.chat.serving.conftest import GOLDEN, Server, assert_error, assistant, data_url, png, user

JSON = {"Content-Type": "application/json"}
IMAGE = data_url(png(1))


def body(**changes: Any) -> bytes:
    return json.dumps({**GOLDEN, **changes}).encode()


def messages(*each: Any) -> bytes:
    return body(messages=list(each))


def image(url: Any) -> bytes:
    return messages({"role": "user", "content": [{"type": "image_url", "image_url": url}]})


MISTAKES: list[tuple[str, bytes]] = [
    ("the body is empty", b""),
    ("the body is not JSON", body()[: len(body()) // 2]),
    ("the body is not JSON", b'{"model": "\xff\xfe"}'),
    ("the body is not JSON", b'{"model": "tiny", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ("more than 100,000 values", b'{"model": "tiny", "messages": [' + b"0," * 200_000 + b"0]}"),
    ("the body is not JSON", b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}'),
    ("401 messages, more than the 256", messages(*[user("What?"), assistant("red")] * 200, user("And?"))),
    ("messages[0].role: Field required", messages({"content": "What?"})),
    ("messages[0].role: Input should be", messages({"role": "tool", "content": "What?"})),
    ("messages[0]: a question needs a text or an image", messages(user(" \n\t "))),
    ("the last message must be a user's", messages(user("What?"), assistant("red"))),
    ("messages[1]: system messages must come first", messages(user("Hi"), {"role": "system", "content": "Be brief."})),
    ("messages[1]: images belong in", messages(user("Hi"), {**user("red", IMAGE), "role": "assistant"}, user("And?"))),
    ("messages[0].content[0]: Input tag", messages({"role": "user", "content": [{"type": "input_audio"}]})),
    ("messages[0].content[0].text: Field required", messages({"role": "user", "content": [{"type": "text"}]})),
    ("the text of a user contains '<image>'", messages(user("Look: <image>"))),
    ("leaves no room for an answer", messages(user("many words " * 3000))),
    ("characters of text are more than", messages(user("many words " * 30_000))),
    ("messages[0].content[0].image_url.url: Field required", image({})),
    ("base64 is broken", image({"url": "data:image/png;base64,@@@@"})),
    ("base64 is broken", image({"url": "data:image/png;base64,A"})),
    ("not an image of a kind that is accepted", image({"url": data_url(b"hello" * 100)})),
    ("damaged", image({"url": data_url(png(1)[:-200])})),
    ("9 images, of 8 allowed", messages(user("What?", *[IMAGE] * 9))),
    ("max_tokens: Input should be greater", body(max_tokens=0)),
    ("temperature: Input should be less", body(temperature=2.1)),
    ("temperature: Input should be less", body(temperature=float("nan"))),
    ("stop: List should have at most 4", body(stop=["a", "b", "c", "d", "e"])),
]  # fmt: skip


@pytest.fixture(scope="module")
def own(serve, golden) -> Iterator[Server]:
    """A server whose golden answer is the same after all of this module's mistakes."""
    with serve() as server:
        yield server
        assert server.text(**GOLDEN) == golden


@pytest.mark.parametrize("words, content", MISTAKES, ids=[str(number) for number in range(len(MISTAKES))])
def test_mistakes_are_told(own, words, content):
    error = assert_error(own.client.post("/v1/chat/completions", content=content, headers=JSON))
    assert error["type"] == "invalid_request_error" and words in error["message"]


def test_what_is_wrong_with_a_request_around_its_body(own):
    url = "/v1/chat/completions"
    for method in ("GET", "OPTIONS"):
        assert_error(own.client.request(method, url), 405)
    for route in ("/", "/v1/responses", "/v1/chat/completions/", "/v1/../health/x", "/%00"):
        assert_error(own.client.post(route), 404)
    for kind, status in (("text/plain", 415), ("", 415), ("application/json; charset=utf-8", 200)):
        assert own.client.post(url, content=body(), headers={"Content-Type": kind}).status_code == status


def test_a_body_that_never_comes(serve):
    with serve(limits=Limits(body_seconds=0.3)) as server:

        def half() -> Iterator[bytes]:
            yield body()[:50]
            time.sleep(1)
            yield body()[50:]

        response: httpx.Response = server.client.post("/v1/chat/completions", content=half(), headers=JSON)
        assert_error(response, 408)
        server.wait_until_idle()
