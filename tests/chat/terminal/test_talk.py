"""What lines do in a dialogue, over a session with a tiny model."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from chat.session import ChatSession
from chat.terminal.commands import COMMANDS, Leave
from chat.terminal.screens import PlainScreen
from chat.terminal.talk import Talk


@pytest.fixture
def talk(model_and_processor) -> Talk:
    """Its notes and complaints are in `screen._errors`, its answers in `screen._output`."""
    session = ChatSession(*model_and_processor, max_new_tokens=8)
    return Talk(session, PlainScreen(io.StringIO(), io.StringIO()))


def told(talk: Talk, *lines: str) -> str:
    """What is noted on these lines."""
    talk.screen._errors = io.StringIO()
    for line in lines:
        talk.handle(line)
    return talk.screen._errors.getvalue()


def test_images_wait_for_the_question(talk, pictures):
    assert "image 1: " in told(talk, f"/image '{pictures[0]}'") and len(talk.waiting) == 1
    assert "image 2: " in told(talk, f"/image '{pictures[1]}'")
    told(talk, "What?", f"'{pictures[2]}' And this?", "Why?")
    assert [len(turn.images) for turn in talk.session.turns] == [2, 1, 0] and talk.waiting == ()
    images = told(talk, "/images")
    assert [images.count(f"image {number}: {pictures[number - 1]} (24 x 20)") for number in (1, 2, 3)] == [
        1,
        1,
        1,
    ]


def test_files_that_are_dropped_on_the_terminal(talk, pictures):
    escaped = str(pictures[1]).replace(" ", "\\ ")
    told(talk, f"'{pictures[0]}' {escaped} ")
    assert [image.name for image in talk.waiting] == list(map(str, pictures[:2]))
    told(talk, str(pictures[2]))  # as it is, spaces and all
    assert len(talk.waiting) == 3
    told(talk, f'"{pictures[3]}" It\'s what?')
    assert talk.session.turns[0].question == "It's what?" and len(talk.session.images) == 4


@pytest.mark.parametrize(
    "question", ["It's a what?", "/ or \\?", "what.png is it?", "'quoted' words", "clear it"]
)
def test_questions_that_look_like_something_else(talk, question):
    if question.startswith("/"):
        assert "there is no command /" in told(talk, question)
    else:
        assert told(talk, question) == "" and talk.session.turns[0].question == question


def test_undo_and_retry(talk, pictures):
    told(talk, f"'{pictures[0]}' What?", f"'{pictures[1]}' Why?", f"/image '{pictures[2]}'")
    before = talk.session.turns
    assert "Removed the images for" in told(talk, "/undo") and talk.session.turns == before
    told(talk, "/retry")
    assert talk.session.turns == before  # greedy: the same
    assert talk.session.statistics[-1].encoded_images == 0
    told(talk, "/set temperature 1.5", "/set seed 3", "/retry")
    assert talk.session.turns[1].answer != before[1].answer
    assert "Taken back: Why?" in told(talk, "/undo")
    assert talk.session.turns == before[:1]
    assert "there is no round to take back" in told(talk, "/undo", "/undo", "/retry")


def test_a_long_dialogue_costs_its_new_tokens_only(talk, pictures, work):
    told(talk, f"'{pictures[0]}' '{pictures[1]}' What?")
    for _ in range(20):
        before = talk.session.statistics[-1].prompt_tokens
        work.update(tokens=0, images=0)
        told(talk, "And now?")
        cost = talk.session.statistics[-1]
        assert work == {"tokens": cost.computed_tokens, "images": 0}
        assert cost.computed_tokens <= cost.prompt_tokens - before + cost.generated_tokens
    assert work["tokens"] < cost.prompt_tokens / 8


def test_a_retry_keeps_the_images_that_wait(talk, pictures):
    told(talk, "What?", f"/image '{pictures[0]}'", "/retry")
    assert len(talk.waiting) == 1 and talk.session.images == ()


def test_clear_and_the_words_of_2023(talk, pictures):
    told(talk, f"'{pictures[0]}' What?", f"/image '{pictures[1]}'", "clear")
    assert talk.session.turns == () and talk.waiting == ()
    for word in ("quit", "exit", "/quit", "/exit"):
        with pytest.raises(Leave):
            talk.handle(word)


def test_a_dialogue_is_kept_and_gone_on_with(talk, pictures, tmp_path):
    told(talk, "/system Be brief.", f"'{pictures[0]}' '{pictures[1]}' What?", "Why?")
    turns = talk.session.turns
    assert "Saved 2 rounds" in told(talk, f"/save '{tmp_path}/my dialogue.json'")
    for path in pictures:
        path.unlink()
    expected = told(talk, "Who?") or talk.session.turns[-1].answer
    told(talk, "/clear", "/system -")
    loaded = told(talk, f"/load '{tmp_path}/my dialogue.json'")
    assert "> What?" in loaded and f"image 2: {pictures[1]} (24 x 20)" in loaded
    assert [(turn.question, turn.answer) for turn in talk.session.turns] == [
        (turn.question, turn.answer) for turn in turns
    ]
    assert talk.session.system == "Be brief."
    told(talk, "Who?")
    assert talk.session.turns[-1].answer == expected


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"messages": [{"role": "tool"}]}',
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}]}',
    ],
)
def test_files_that_hold_no_dialogue(talk, tmp_path, content):
    file = tmp_path / "dialogue.json"
    file.write_text(content)
    assert f"{file}: it holds no dialogue" in told(talk, "What?", f"/load {file}")
    assert len(talk.session.turns) == 1
    assert "cannot be read" in told(talk, f"/load {tmp_path}/nowhere.json")


def test_settings(talk):
    assert "temperature 0, top_p 1" in told(talk, "/set")
    told(talk, "/set temperature 0.7", "/set top_k=5", "/set length 3", "What?")
    assert (talk.session.sampling.temperature, talk.session.sampling.top_k) == (0.7, 5)
    assert talk.session.statistics[-1].generated_tokens <= 3
    mistakes = ["/set top_p 2", "/set temperature hot", "/set length 0", "/set colour red", "/set seed 1.5"]
    complaints = told(talk, *mistakes)
    assert complaints.count("error: ") == 5
    assert "top_p is 2.0" in complaints and "there is no setting 'colour'" in complaints
    assert talk.session.sampling.top_p == 1


def test_mistakes_leave_everything_as_it_was(talk, pictures):
    told(talk, f"'{pictures[0]}' What?", f"/image '{pictures[1]}'")
    state = talk.session.turns, talk.waiting
    many = " ".join(f"'{path}'" for path in pictures[2:9])
    mistakes = [
        "/image nowhere.png",
        f"/image '{pictures[2]}' nowhere.png",
        f"/image {many}",
        "/image",
        "/image it's.png",
    ]
    mistakes += ["/save", "/load a b", "/nothing", "Look: <image>", "/save /proc/nothing/a.json"]
    complaints = told(talk, *mistakes)
    assert complaints.count("error: ") == len(mistakes) and "of 8 allowed" in complaints
    assert (talk.session.turns, talk.waiting) == state


def test_an_interruption_keeps_what_was_said(talk, pictures, monkeypatch):
    pieces = []

    def interrupt(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(talk.screen, "piece", interrupt)
    with pytest.raises(KeyboardInterrupt):
        talk.handle(f"'{pictures[0]}' What?")
    assert talk.session.turns[0].answer == "".join(pieces) and talk.session.statistics[0].end == "interrupted"
    assert talk.waiting == ()


def test_an_image_from_the_web(talk, pictures):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pictures[0].read_bytes())

        def log_message(self, *args) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        assert f"image 1: {url} (24 x 20)" in told(talk, f"/image {url}")
    assert "cannot be fetched" in told(talk, f"/image {url}")


def test_help_names_every_command(talk):
    shown = told(talk, "/help")
    assert all(name in shown for name in COMMANDS)


def test_saved_messages_are_those_of_a_request(talk, pictures, tmp_path):
    told(talk, f"'{pictures[0]}' What?", f"/save {tmp_path}/a.json")
    said = json.loads((tmp_path / "a.json").read_text())["messages"]
    assert [message["role"] for message in said] == ["user", "assistant"]
    assert said[0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
