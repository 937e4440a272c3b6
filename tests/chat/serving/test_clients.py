"""The clients that people use, against a server that runs; what they get is what a session says."""

from itertools import pairwise

import huggingface_hub
import openai
import pytest
from huggingface_hub import InferenceClient

from chat.generation.decoding import Sampling
from chat.session import ChatSession
from tests.chat.serving.conftest import GOLDEN, LENGTH, assert_error, assistant, data_url, png, user


@pytest.fixture
def client(server) -> openai.OpenAI:
    return server.openai()


@pytest.fixture
def session(model_and_processor) -> ChatSession:
    return ChatSession(*model_and_processor, max_new_tokens=LENGTH)


def test_three_rounds_with_several_images_equal_those_of_a_session(serve, session):
    messages, cached, pngs = [], [], [png(number) for number in range(3)]
    with serve() as server:
        client = server.openai()
        for question, images in [("What?", pngs[:2]), ("Where?", []), ("And this?", pngs[2:])]:
            messages.append(user(question, *map(data_url, images)))
            answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
            said = answer.choices[0].message.content
            assert said == "".join(session.ask(question, images))
            cost, usage = session.statistics[-1], answer.usage
            assert (usage.prompt_tokens, usage.completion_tokens) == (
                cost.prompt_tokens,
                cost.generated_tokens,
            )
            assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
            assert answer.choices[0].finish_reason == {"eos": "stop", "length": "length"}[cost.end]
            cached.append((usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens))
            messages.append(assistant(said))
    assert cached[0][1] == 0
    for (before, _), (prompt, reused) in pairwise(cached):
        assert before - 1 <= reused < prompt  # what was asked before is not computed again


def test_a_stream_is_the_same_in_pieces(client):
    whole = client.chat.completions.create(**GOLDEN)
    chunks = list(
        client.chat.completions.create(**GOLDEN, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == whole.choices[0].message.content and len(said) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "length"
    ]
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(client.chat.completions.create(**GOLDEN, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in without)


def test_the_hub_s_client(server, golden, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # it means this machine too
    client = InferenceClient(base_url=f"{server.url}/v1", api_key="none")
    for request in (GOLDEN, {**GOLDEN, "model": None}):  # without a name it gives one of its own
        answer = client.chat.completions.create(**request)
        assert answer.choices[0].message.content == golden and answer.model == "tiny"
    pieces = client.chat.completions.create(**GOLDEN, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == golden


def test_models_and_health(client, server):
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="there is no model other"):
        client.models.retrieve("other")
    assert server.wait_until_idle() == {"status": "ok", "answering": 0, "waiting": 0, "requests": 0}


def test_seeds_and_settings_of_a_request(server, session):
    body = {"messages": [user("What?", data_url(png(5)))], "temperature": 1.5, "top_k": 50, "top_p": 0.9}
    answers = [server.text(**body, seed=seed, repetition_penalty=1.2) for seed in (1, 2, 1)]
    assert answers[0] == answers[2] != answers[1]
    session.sampling = Sampling(1.5, 0.9, 50, 1.2, seed=2)
    assert "".join(session.ask("What?", png(5))) == answers[1]
    assert len({server.text(**body) for _ in range(5)}) > 1  # without a seed each is drawn anew
    short = server.ask(messages=[user("What?")], max_completion_tokens=2).json()
    assert short["usage"]["completion_tokens"] <= 2


def test_stop_strings(server):
    body = {"messages": [user("What?", data_url(png(5)))], "temperature": 0, "max_tokens": 12}
    whole = server.text(**body)
    stop = whole[3:6]
    answer = server.ask(**body, stop=[stop, "never said"]).json()
    assert answer["choices"][0]["message"]["content"] == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert server.text(**body, stop="never said") == whole


def test_a_key_on_every_route(serve):
    with serve(key="secret") as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            for route in ("/v1/models", "/nothing", "/v1/chat/completions", "/metrics"):
                for method in ("GET", "POST", "OPTIONS"):
                    assert_error(server.client.request(method, route, headers=headers), 401)
        for route in ("/health", "/docs", "/openapi.json"):
            assert server.client.get(route).status_code == 200
        client = server.openai("secret")
        assert client.chat.completions.create(**GOLDEN).choices
        with pytest.raises(openai.AuthenticationError):
            server.openai("wrong").models.list()


def test_a_name_that_is_not_ours(serve):
    with serve(hosts=("localhost", "127.0.0.1", "[::1]")) as server:
        names = {"127.0.0.1:80": 200, "LOCALHOST": 200, "[::1]:8000": 200, "evil.example": 400}
        for name, status in names.items():
            assert server.client.get("/v1/models", headers={"Host": name}).status_code == status
