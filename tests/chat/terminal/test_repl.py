"""What lines do in a dialogue, over a session with a tiny model."""

import io

import pytest

from chat.session import ChatSession
from chat.terminal.repl import COMMANDS, Leave, Repl
from chat.terminal.screens import PlainScreen
from tests.chat.local_web import give, listener


@pytest.fixture
def repl(model_and_processor) -> Repl:
    """Its notes and complaints are in `screen._errors`, its answers in `screen._output`."""
    session = ChatSession(*model_and_processor, max_new_tokens=8)
    return Repl(session, PlainScreen(io.StringIO(), io.StringIO()))


def told(repl: Repl, *lines: str) -> str:
    """What is noted on these lines."""
    repl.screen._errors = io.StringIO()
    for line in lines:
        repl.handle(line)
    return repl.screen._errors.getvalue()


def test_images_wait_for_the_question(repl, pictures):
    assert "image 1: " in told(repl, f"/image '{pictures[0]}'") and len(repl.waiting) == 1
    assert "image 2: " in told(repl, str(pictures[1]))  # dropped on the terminal
    told(repl, "What?", f"'{pictures[2]}' It's what?", "Why?")
    assert [len(turn.images) for turn in repl.session.turns] == [2, 1, 0] and repl.waiting == ()
    assert repl.session.turns[1].question == "It's what?"
    images = told(repl, "/images")
    assert all(f"image {number}: {pictures[number - 1]} (24 x 20)" in images for number in (1, 2, 3))


def test_undo_and_retry(repl, pictures):
    told(repl, f"'{pictures[0]}' What?", f"'{pictures[1]}' Why?", f"/image '{pictures[2]}'")
    before = repl.session.turns
    assert "Removed the images for" in told(repl, "/undo") and repl.session.turns == before
    told(repl, "/retry")
    assert repl.session.turns == before  # greedy: the same
    assert repl.session.statistics[-1].encoded_images == 0
    told(repl, "/set temperature 1.5", "/set seed 3", "/retry")
    assert repl.session.turns[1].answer != before[1].answer
    assert "Taken back: Why?" in told(repl, "/undo")
    assert repl.session.turns == before[:1]
    told(repl, f"/image '{pictures[0]}'", "/retry")
    assert len(repl.waiting) == 1  # they are the next question's
    assert "there is no round to take back" in told(repl, "/undo", "/undo", "/undo")


def test_clear_and_the_words_of_2023(repl, pictures):
    told(repl, f"'{pictures[0]}' What?", f"/image '{pictures[1]}'", "clear")
    assert repl.session.turns == () and repl.waiting == ()
    for word in ("quit", "exit", "/quit", "/exit"):
        with pytest.raises(Leave):
            repl.handle(word)


def test_a_dialogue_is_kept_and_gone_on_with(repl, pictures, tmp_path):
    told(repl, "/system Be brief.", f"'{pictures[0]}' '{pictures[1]}' What?", "Why?")
    turns = repl.session.turns
    assert "Saved 2 rounds" in told(repl, f"/save '{tmp_path}/my dialogue.json'")
    for path in pictures:
        path.unlink()
    expected = told(repl, "Who?") or repl.session.turns[-1].answer
    told(repl, "/clear", "/system -")
    loaded = told(repl, f"/load '{tmp_path}/my dialogue.json'")
    assert "> What?" in loaded and f"image 2: {pictures[1]} (24 x 20)" in loaded
    assert [each.answer for each in repl.session.turns] == [each.answer for each in turns]
    assert repl.session.system == "Be brief."
    told(repl, "Who?")
    assert repl.session.turns[-1].answer == expected


UNANSWERED = '{"messages": [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}]}'


@pytest.mark.parametrize("content", ["", "[]", '{"messages": [{"role": "tool"}]}', UNANSWERED])
def test_files_that_hold_no_dialogue(repl, tmp_path, content):
    file = tmp_path / "dialogue.json"
    file.write_text(content)
    assert f"{file}: it holds no dialogue" in told(repl, "What?", f"/load {file}")
    assert len(repl.session.turns) == 1
    assert "cannot be read" in told(repl, f"/load {tmp_path}/nowhere.json")


def test_settings(repl):
    assert "temperature 0, top_p 1" in told(repl, "/set")
    told(repl, "/set temperature 0.7", "/set top_k=5", "/set length 3", "What?")
    assert (repl.session.sampling.temperature, repl.session.sampling.top_k) == (0.7, 5)
    assert repl.session.statistics[-1].generated_tokens <= 3
    mistakes = ["/set top_p 2", "/set temperature hot", "/set length 0", "/set colour red", "/set seed 1.5"]
    complaints = told(repl, *mistakes)
    assert complaints.count("error: ") == 5
    assert "top_p is 2.0" in complaints and "there is no setting 'colour'" in complaints
    assert repl.session.sampling.top_p == 1


def test_mistakes_leave_everything_as_it_was(repl, pictures):
    told(repl, f"'{pictures[0]}' What?", f"/image '{pictures[1]}'")
    state = repl.session.turns, repl.waiting
    many = " ".join(f"'{path}'" for path in pictures[2:9])
    mistakes = [
        "/image nowhere.png",
        f"/image '{pictures[2]}' nowhere.png",
        f"/image {many}",
        "/image it's.png",
    ]
    mistakes += ["/image", "/load a b", "/nothing", "Look: <image>", "/save /proc/nothing/a.json"]
    complaints = told(repl, *mistakes)
    assert complaints.count("error: ") == len(mistakes) and "of 8 allowed" in complaints
    assert "there is no command /nothing" in complaints
    assert (repl.session.turns, repl.waiting) == state


def test_an_image_from_the_web(repl, pictures):
    with listener(give(pictures[0].read_bytes())) as (port, _):
        url = f"http://127.0.0.1:{port}/a.png"
        assert f"image 1: {url} (24 x 20)" in told(repl, f"/image {url}")
    assert "cannot be fetched" in told(repl, f"/image {url}")


def test_help_names_every_command(repl):
    shown = told(repl, "/help")
    assert all(name in shown for name in COMMANDS)
