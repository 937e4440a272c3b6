"""What is told of a request beside its answer: its id, a line in the log, counts for Prometheus, a description."""

import re
from typing import Any

import pytest
from pydantic import TypeAdapter

from chat.generation import Generator
from chat.serving.responses import ChatCompletion, Model, ModelList
from tests.chat.serving.conftest import GOLDEN, Server, assert_error, data_url, logged, png, user
from tests.chat.serving.test_slots import gate  # noqa: F401


@pytest.fixture
def log(caplog) -> Any:
    caplog.set_level("INFO", "chat")
    return caplog


def test_each_response_has_an_id(server):
    client = server.client
    responses = [
        server.ask(**GOLDEN),
        server.ask(messages=[]),
        client.head("/health"),
        client.get("/nothing"),
    ]
    assert [each.status_code for each in responses] == [200, 400, 200, 404] and responses[2].content == b""
    ids = [response.headers["x-request-id"] for response in responses]
    assert len(set(ids)) == 4 and all(re.fullmatch("req_[0-9a-f]{24}", each) for each in ids)
    assert server.openai().chat.completions.create(**GOLDEN)._request_id.startswith("req_")


@pytest.mark.parametrize(
    "sent, kept", [("my-id_1.2:3", True), ("a" * 129, False), ("", False), ("caf\u00e9", False)]
)
def test_a_client_s_own_id_is_kept_where_it_is_one(server, sent, kept):
    response = server.client.get("/v1/models", headers={"x-request-id": sent.encode()})
    assert (response.headers["x-request-id"] == sent) == kept


def test_a_line_for_each_request(server, log):
    body = {
        "messages": [user("What?", *map(data_url, [png(31), png(32)]))],
        "max_tokens": 2,
        "temperature": 0,
    }
    for stream in (False, True):
        response = server.ask(**body, stream=stream)
        line = logged(log, response)
        assert line.startswith("POST /v1/chat/completions 200 in ")
        assert re.search(r" s: images 2, tokens \d+ \(\d+ cached\), answer 2 \(length\) \[req_\w+\]$", line)
    mistake = logged(log, server.ask(messages=[]))
    assert " 400 in " in mistake and "s: messages: List should have at least 1 item" in mistake
    server.client.get("/health")
    server.client.get("/metrics")
    odd = logged(log, server.client.get("/nothing%0Aelse%1b[31m"))
    assert odd.startswith(r"GET /nothing\nelse\x1b[31m 404 in ")
    assert "\n" not in logged(log, server.ask(messages=[user("What?")], **{"a\nb": 1}))
    assert not any("/health" in line or "/metrics" in line for line in log.messages)  # asked all the time


def counts(server: Server) -> dict[str, float]:
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    assert response.text.endswith("\n")
    for line in lines:
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [\d.]+', line), line
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_counts(serve, gate):  # noqa: F811
    gate.set()
    completions = 'visualchat_requests_total{route="/v1/chat/completions",status="%d"}'
    with serve() as server:
        before = counts(server)
        assert before["visualchat_answer_seconds_count"] == before["visualchat_images_total"] == 0
        for reason in ("stop", "length"):  # listed before it occurs
            assert before[f'visualchat_answers_total{{finish_reason="{reason}"}}'] == 0
        body = {"messages": [user("What?", data_url(png(41)))], "max_tokens": 2, "temperature": 0}
        usages = [server.ask(**body).json()["usage"] for _ in range(2)]
        server.ask(**body, stream=True)
        server.ask(**{**body, "messages": []})
        for name in ("a", "b"):
            server.client.get(f"/{name}")
            server.client.get(f"/v1/models/{name}")
        gate.clear()
        with server.client.stream("POST", "/v1/chat/completions", json={**GOLDEN, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            busy = counts(server)
            assert (busy["visualchat_answering_now"], busy["visualchat_requests_now"]) == (1, 1)
        gate.set()
        server.wait_until_idle()
        after = counts(server)
    assert after[completions % 200] == 3 and after[completions % 400] == after[completions % 499] == 1
    assert after['visualchat_requests_total{route="other",status="404"}'] == 2  # names of routes are ours
    assert after['visualchat_requests_total{route="/v1/models/{name:path}",status="404"}'] == 2
    assert after['visualchat_answers_total{finish_reason="length"}'] == 3
    assert after["visualchat_images_total"] == 3 and after["visualchat_generated_tokens_total"] == 6
    assert after["visualchat_prompt_tokens_total"] == 3 * usages[0]["prompt_tokens"]
    first, second = (each["prompt_tokens_details"]["cached_tokens"] for each in usages)
    assert after["visualchat_cached_prompt_tokens_total"] == first + 2 * second > 0
    assert after["visualchat_answer_seconds_count"] == 3 and after["visualchat_answer_seconds_sum"] > 0
    assert after["visualchat_first_piece_seconds_count"] == 4  # that of the client that left, too
    assert not any(after[f"visualchat_{name}_now"] for name in ("answering", "waiting", "requests"))


def test_a_fault_of_the_server_has_an_id_and_a_traceback(serve, log, monkeypatch):
    with serve() as server:
        monkeypatch.setattr("chat.serving.service.read_dialogue", lambda *_, **__: 1 / 0)
        response = server.ask(**GOLDEN)
        error = assert_error(response, 500)
        assert error["type"] == "server_error" and "division" not in error["message"]
        assert (
            f"request {response.headers['x-request-id']} failed" in log.messages
            and "ZeroDivisionError" in log.text
        )
        monkeypatch.undo()
        server.wait_until_idle()
        assert server.ask(**GOLDEN).status_code == 200


def test_a_fault_in_the_middle_of_a_stream_is_counted(serve, log, monkeypatch):
    def fail(self):
        raise RuntimeError("out of memory")

    with serve() as server:
        monkeypatch.setattr(Generator, "step", fail)
        response = server.ask(**GOLDEN, stream=True)
        assert response.status_code == 200
        assert response.text.count("data: ") == 2 and '"server_error"' in response.text  # its last event
        assert "[DONE]" not in response.text
        assert "POST /v1/chat/completions 500 in" in logged(log, response)
        assert counts(server)['visualchat_requests_total{route="/v1/chat/completions",status="500"}'] == 1
        monkeypatch.undo()
        server.wait_until_idle()
        assert server.ask(**GOLDEN).status_code == 200


def references(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(references, node))
    if isinstance(node, dict):
        return {node["$ref"]} if "$ref" in node else set().union(*map(references, node.values()))
    return set()


def test_the_description_for_programs(server):
    schema = server.client.get("/openapi.json").json()
    assert {(method, path) for path, methods in schema["paths"].items() for method in methods} == {
        ("get", "/health"),
        ("get", "/metrics"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{name}"),
        ("post", "/v1/chat/completions"),
    }
    named = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert references(schema) == named  # none is missing, none is left over
    complete = schema["paths"]["/v1/chat/completions"]["post"]
    assert complete["responses"].keys() == {"200", "400", "401", "408", "413", "415", "429", "500"}
    message = schema["components"]["schemas"]["Message"]["properties"]["content"]["anyOf"]
    assert {kind.get("type") for kind in message} == {"string", "array", "null"}
    assert schema["components"]["schemas"]["CompletionRequest"]["required"] == ["messages"]


def test_what_is_answered_is_what_is_described(server):
    client = server.client
    for response, shape in [
        (server.ask(**GOLDEN), ChatCompletion),
        (client.get("/v1/models"), ModelList),
        (client.get("/v1/models/tiny"), Model),
    ]:
        body = response.json()
        assert TypeAdapter(shape).validate_python(body, strict=True) == body  # nothing more is in it, either
    assert "system_fingerprint" not in server.ask(**GOLDEN).text + server.ask(**GOLDEN, stream=True).text


def test_the_page_for_people_loads_nothing(server):
    response = server.client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    for words in (
        "POST /v1/chat/completions",
        "repetition_penalty",
        "frequency_penalty",
        "VisualChat: tiny",
        "curl",
    ):
        assert words in response.text
    assert "<script" not in response.text and "src=" not in response.text and "//cdn" not in response.text


PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    "Access-Control-Request-Private-Network": "true",
}


@pytest.mark.parametrize("origin, key", [("https://app.example", "secret"), ("*", None)])
def test_web_pages_that_may_ask(serve, origin, key):
    with serve(key=key, origins=(origin,)) as server:
        url, page = "/v1/chat/completions", {"Origin": "https://app.example"}
        own = {**page, "Authorization": "Bearer secret"}
        asked = server.client.options(url, headers={**PREFLIGHT, **page})
        assert "POST" in asked.headers["access-control-allow-methods"]
        headers = asked.headers["access-control-allow-headers"].lower().replace(" ", "").split(",")
        assert {"authorization", "content-type", "x-stainless-lang"} <= set(headers)
        answers = [
            server.client.post(url, json={**GOLDEN, "stream": True}, headers=own),
            server.client.post(url, json={}, headers=own),
            server.client.get("/v1/models", headers=page),
        ]
        assert [each.status_code for each in answers] == [200, 400, 401 if key else 200]
        for response in (asked, *answers):
            assert response.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in answers[0].headers["access-control-expose-headers"]


def test_web_pages_that_may_not(serve, server):
    other = {"Origin": "https://evil.example"}
    with serve(origins=("https://app.example",)) as strict:
        for each, status in ((strict, 400), (server, 405)):  # by default none may
            asked = each.client.options("/v1/chat/completions", headers={**PREFLIGHT, **other})
            assert asked.status_code == status
            for response in (asked, each.client.get("/v1/models", headers=other)):
                assert "access-control-allow-origin" not in response.headers
