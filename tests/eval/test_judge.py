"""The judge, over a real HTTP endpoint that speaks OpenAI's language."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from eval import judge
from eval.results import read_results, write_results
from eval.scores import Row, scores_of


class Endpoint(ThreadingHTTPServer):
    """Marks an answer 9 if it holds the reference, else 2; says nonsense to the questions in `confused`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests, self.confused, self.failures = [], set(), 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        if self.server.failures > 0:
            self.server.failures -= 1
            self.send_error(503)
            return
        text = request["messages"][1]["content"][-1]["text"]
        answer = text.rsplit("to be judged: ", 1)[1]
        mark = 9 if f"Reference answer: {answer}" in text else 2
        reply = f'I think {{"reason": "so", "mark": {mark}}}'
        if any(f"User: {question}" in text for question in self.server.confused):
            reply = "no idea"
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge"}
        message = {"role": "assistant", "content": reply}
        body["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        payload = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def results(tmp_path):
    Image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / "1.png")
    rows = [
        Row("one", "1.png", "what colour?", "red", ("red",), "colour", (str(tmp_path / "1.png"),), 1),
        Row("one", "", "and how many?", "three", ("two",), "count", (), 1),
        Row("two", "", "hello?", "hi", ()),
        Row("two", "", "too long?", None, ("x",)),
    ]
    path = tmp_path / "results.json"
    write_results(path, rows, scores_of(rows), {"checkpoint": "c", "eval_data": "d"})
    return path


def run(results, endpoint, *flags: str) -> int:
    return judge.main([str(results), "--model", "judge", "--base_url", endpoint.url, *flags])


def test_marks_go_into_the_results(results, endpoint, capsys):
    assert run(results, endpoint) == 0
    settings, rows = read_results(results)
    assert [row.judged for row in rows] == [9, 2, 2, None]
    assert settings["judge"] == "judge" and "mean mark 4.33 of 10, over 3 answers" in capsys.readouterr().out
    texts = {request["messages"][1]["content"][-1]["text"] for request in endpoint.requests}
    assert (
        "[image 1 is shown]\nUser: what colour?\nAssistant: red\nUser: and how many?\n\n"
        "Reference answer: two\n\nThe assistant's answer, to be judged: three"
    ) in texts
    assert all(request["messages"][0]["content"] == judge.PROMPT.read_text() for request in endpoint.requests)


def test_judge_may_see_the_pictures(results, endpoint):
    assert run(results, endpoint, "--with_images") == 0
    kinds = sorted(
        [part["type"] for part in request["messages"][1]["content"]] for request in endpoint.requests
    )
    assert kinds == [["image_url", "text"], ["image_url", "text"], ["text"]]


def test_what_failed_is_asked_again(results, endpoint, capsys):
    endpoint.confused.add("hello?")
    endpoint.failures = 1  # a passing trouble: the client tries again
    assert run(results, endpoint, "--concurrency", "1") == 1
    assert "no mark for 1 answer;" in capsys.readouterr().err.replace("\n", " ")
    assert [row.judged for row in read_results(results)[1]] == [9, 2, None, None]
    endpoint.confused.clear()
    endpoint.requests.clear()
    assert run(results, endpoint) == 0
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("reply", ["", "7", '{"mark": 11}', '{"mark": "good"}', '{"reason": "x"}'])
def test_replies_without_a_mark(reply):
    with pytest.raises(judge.JudgementError, match="no mark"):
        judge.parse_mark(reply)
    assert judge.parse_mark(f'{reply} {{"mark": 4}}') == 4
