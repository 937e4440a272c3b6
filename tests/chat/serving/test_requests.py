"""Requests in all the shapes in which clients send them: messages, images, fields and their values."""

from collections.abc import Iterator
from typing import Any

import pytest

from chat.server_setup import Limits
from chat.session import ChatSession
from tests.chat.serving.conftest import Server, assert_error, assistant, data_url, logged, png, user
from utils.conversation import Image, Turn

pytestmark = pytest.mark.integration

ONE, TWO = data_url(png(11)), data_url(png(12))
FIRST, SECOND = Image(png(11)), Image(png(12))


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


SYSTEM = said("system", "Be brief.")
ASKED = ("What?", ())
TALK = [Turn("What?", "red", ())]

# name: the messages; then, by hand, what a session is asked: the turns before, the system's text, question, images
SHAPES: dict[str, tuple[list[dict[str, Any]], list[Turn], str | None, tuple[str, tuple[Image, ...]]]] = {
    "a text": ([said("user", "What?")], [], None, ASKED),
    "two parts": (
        [said("user", [{"type": "text", "text": "What?"}, {"type": "text", "text": "Why?"}])],
        [], None, ("What?\nWhy?", ()),
    ),
    "two questions": (
        [user("What?", ONE), {**said("user", "Why?"), "name": "me"}], [], None, ("What?\nWhy?", (FIRST,)),
    ),
    "an image without a text": (
        [said("user", user("", ONE)["content"][:1])], [], None, ("Describe the image.", (FIRST,)),
    ),
    "images without a text": ([user("", ONE, TWO)], [], None, ("Describe the images.", (FIRST, SECOND))),
    "the text before the image": (
        [said("user", user("What?", ONE)["content"][::-1])], [], None, ("What?", (FIRST,)),
    ),
    "an image without a text before": (
        [user("", ONE), assistant("red"), user("What?", TWO)],
        [Turn("Describe the image.", "red", (FIRST,))], None, ("What?", (SECOND,)),
    ),
    "url as a text": (
        [said("user", [{"type": "image_url", "image_url": ONE}, {"type": "text", "text": "What?"}])],
        [], None, ("What?", (FIRST,)),
    ),
    "a system": ([SYSTEM, said("user", "What?")], [], "Be brief.", ASKED),
    "a system and a developer": (
        [SYSTEM, said("developer", [{"type": "text", "text": "Be kind."}]), said("user", "What?")],
        [], "Be brief.\nBe kind.", ASKED,
    ),
    "two greetings behind a system": (
        [SYSTEM, assistant("Hello!"), assistant("Ask me."), said("user", "What?")], [], "Be brief.", ASKED,
    ),
    "two answers": (
        [said("user", "What?"), assistant("red"), assistant("or blue"), said("user", "Why?")],
        [Turn("What?", "red\nor blue", ())], None, ("Why?", ()),
    ),
    "an answer that is null": (
        [said("user", "What?"), said("assistant", None), said("user", "Why?")],
        [Turn("What?", "(no answer)", ())], None, ("Why?", ()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_messages_mean_what_a_session_is_asked(server, model_and_processor, name):
    messages, turns, system, (question, images) = SHAPES[name]
    session = ChatSession(*model_and_processor, max_new_tokens=3)
    session.load(turns, system)
    expected = "".join(session.ask(question, images))
    body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 3}
    answer = server.ask(**body).json()
    assert answer["choices"][0]["message"]["content"] == expected
    assert answer["usage"]["prompt_tokens"] == session.statistics[-1].prompt_tokens
    client = server.openai()
    pieces = client.chat.completions.create(**body, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected


NEUTRAL = {
    "n": [1], "top_k": [-1, 0], "stop": ["", [], [""], None], "parallel_tool_calls": [True],
    "frequency_penalty": [0, 0.0], "logprobs": [False, None], "logit_bias": [{}], "tools": [[], None],
    "tool_choice": ["none", "auto"], "response_format": [{"type": "text"}], "user": ["me"], "metadata": [{"a": "b"}],
    "chat_template_kwargs": [{}, {"enable_thinking": False}], "unheard_of": [None, False, "", [], {}],
    "max_tokens": [10**6, 10**400], "model": ["gpt-4o", "", None], "stream": [None],
}  # fmt: skip
TUNING = {
    "frequency_penalty": 0.5,
    "logit_bias": {"5": -100},
    "min_p": 0.05,
    "best_of": 3,
    "reasoning_effort": "low",
}
CHANGING = {
    "n": 2, "logprobs": True, "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required",
    "response_format": {"type": "json_object"}, "skip_special_tokens": False, "web_search_options": {},
}  # fmt: skip
UNKNOWN = {"temprature": 0.5, "colour": "red", "zero": 0}


BODY = {"messages": [user("What?")], "temperature": 0, "max_tokens": 5}


@pytest.fixture(scope="module")
def lenient(serve) -> Iterator[Server]:
    """A server that ignores what it does not know, whose answers are short."""
    with serve(lenient=True, limits=Limits(max_tokens=3)) as server:
        yield server


@pytest.fixture(scope="module")
def strict(serve) -> Iterator[Server]:
    with serve(limits=Limits(max_tokens=3)) as server:
        yield server


@pytest.fixture(params=["strict", "lenient"])
def either(request) -> Server:
    return request.getfixturevalue(request.param)


def test_values_that_ask_for_nothing(strict, caplog):
    caplog.set_level("INFO", "chat")
    plain = strict.text(**BODY)
    for name, values in NEUTRAL.items():
        for value in values:
            assert strict.text(**{**BODY, name: value}) == plain, (name, str(value)[:50])
    assert "ignored" not in caplog.text


def test_fields_that_tune_are_ignored_and_the_log_says_so(either, caplog):
    caplog.set_level("INFO", "chat")
    plain = either.text(**BODY)
    for fields in ({}, *({name: value} for name, value in TUNING.items()), TUNING):
        response = either.ask(**{**BODY, **fields})
        assert response.json()["choices"][0]["message"]["content"] == plain
        line = logged(caplog, response)
        assert (f", ignored {', '.join(fields)} [" in line) if fields else ("ignored" not in line)


def test_fields_that_change_the_meaning_are_refused(either):
    for name, value in CHANGING.items():
        error = assert_error(either.ask(**{**BODY, name: value}), 400)
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        assert error["message"].startswith(f"{name}=") and "is not supported here" in error["message"]


def test_fields_that_nobody_knows(strict, lenient, caplog):
    caplog.set_level("INFO", "chat")
    plain = lenient.text(**BODY)
    for name, value in UNKNOWN.items():
        error = assert_error(strict.ask(**{**BODY, name: value}), 400)
        assert (error["param"], error["code"]) == (name, "unknown_parameter")
        response = lenient.ask(**{**BODY, name: value})
        assert response.json()["choices"][0]["message"]["content"] == plain
        assert f", ignored {name} [" in logged(caplog, response)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("asked, given", [(2, 2), (4, 3), (10**9, 3)])
def test_an_answer_is_as_long_as_is_allowed(strict, name, asked, given):
    body = {"model": "tiny", "messages": [user("What?")], "temperature": 0, name: asked}
    answer = strict.client.post("/v1/chat/completions", json=body).json()
    assert answer["usage"]["completion_tokens"] == given
    assert answer["choices"][0]["finish_reason"] == "length"
