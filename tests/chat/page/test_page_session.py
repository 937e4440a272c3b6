"""A page's dialogue over the engine, without a page."""

import json
from collections.abc import Iterator

import pytest

from chat.generation.decoding import Sampling
from chat.page.layout import chat_messages
from chat.page.page_session import STOPPED, AnswerSettings, PageSession, SharedEngine
from chat.server_setup import Limits
from chat.serving.engine import Engine
from chat.serving.errors import ApiError
from chat.serving.images import ImageOpener, Sources
from chat.session import ChatSession


@pytest.fixture
def shared(model_and_processor) -> Iterator[SharedEngine]:
    session = ChatSession(*model_and_processor, max_new_tokens=8)
    engine = Engine(session, slots=2)
    yield SharedEngine(engine, ImageOpener(Limits(), Sources()), session)
    engine.close()


SETTINGS = AnswerSettings(Sampling(), 8)


def ask(page: PageSession, question: str, paths=(), settings: AnswerSettings = SETTINGS) -> str:
    for _ in page.ask(question, page.open_files(list(map(str, paths))), settings):
        pass
    return page.turns[-1].answer


def test_rounds_equal_those_of_a_session_and_cost_what_is_new(shared, model_and_processor, pictures):
    session = ChatSession(*model_and_processor, max_new_tokens=8)
    page = PageSession(shared)
    for question, paths in [("What?", pictures[:2]), ("Where?", []), ("Who?", pictures[2:3]), ("Why?", [])]:
        list(session.ask(question, paths))
        assert ask(page, question, paths) == session.turns[-1].answer
    cost = session.statistics[-1]
    assert f"({cost.computed_tokens} computed)" in page.status and "3 images (0 new)" in page.status


def test_an_answer_is_stopped(shared, pictures):
    page = PageSession(shared)
    steps = page.ask("What?", page.open_files([str(pictures[0])]), AnswerSettings(Sampling(), 2000))
    next(steps)
    said = page.shown[-1].answer
    page.stop()
    assert len(list(steps)) < 100 and page.status == STOPPED
    assert page.turns[0].answer.startswith(said)
    while shared.engine.busy:
        pass
    assert ask(page, "And?")


def test_a_new_dialogue_keeps_nothing_of_an_answer_that_was_begun(shared, pictures):
    page = PageSession(shared)
    steps = page.ask("What?", page.open_files([str(pictures[0])]), AnswerSettings(Sampling(), 2000))
    next(steps)
    page.clear()
    assert list(steps) == [] and page.shown == () and page.status == ""
    ask(page, "And?")
    assert len(page.turns) == 1 and page.image_count == 0


def test_a_question_that_fails_is_not_kept(shared, pictures):
    page = PageSession(shared)
    ask(page, "What?", pictures[:1])
    for question, paths, words in [
        ("Look: <image>", [], "'<image>'"),
        ("many words " * 2000, [], "no room"),
        ("What?", pictures[:8], "9 images, of 8 allowed"),
        ("What?", [__file__], "not an image of a kind"),
    ]:
        with pytest.raises(ApiError) as raised:
            ask(page, question, paths)
        assert words in raised.value.message
        assert len(page.turns) == 1 and page.asked is None


def test_undo_clear_and_keep(shared, pictures, tmp_path):
    page = PageSession(shared)
    ask(page, "What?", pictures[:1], AnswerSettings(Sampling(), 8, system="Be brief."))
    page.save(tmp_path / "kept.json")
    said = json.loads((tmp_path / "kept.json").read_text())["messages"]
    assert [each["role"] for each in said] == ["system", "user", "assistant"]
    assert page.undo().question == "What?" and page.undo() is None
    ask(page, "What?", pictures[:1])
    page.clear()
    assert page.shown == () and page.image_count == 0


def test_images_are_shown_with_the_numbers_that_the_model_knows(shared, pictures):
    page = PageSession(shared)
    ask(page, "What?", pictures[:2])
    ask(page, "Why?", pictures[2:3])
    shown = chat_messages(page.shown, page.files)
    parts = [part for each in shown for part in each["content"] if "props" in part]
    captioned = [(part["props"]["label"], part["value"]["path"]) for part in parts]
    assert captioned == [(f"Image {number}", str(pictures[number - 1])) for number in (1, 2, 3)]
    assert [(each["role"], each["content"][-1]["text"]) for each in shown[::2]] == [
        ("user", "What?"),
        ("user", "Why?"),
    ]
