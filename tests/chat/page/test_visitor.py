"""A visitor's dialogue over the engine, without a page."""

import json
from collections.abc import Iterator

import pytest

from chat.generation.sampling import Sampling
from chat.page.messages import chat_messages
from chat.page.visitor import STOPPED, House, Visitor, Wishes
from chat.serving.engine import Engine
from chat.serving.errors import ApiError
from chat.serving.limits import Limits
from chat.serving.pictures import Pictures, Sources
from chat.session import ChatSession


@pytest.fixture
def house(model_and_processor) -> Iterator[House]:
    session = ChatSession(*model_and_processor, max_new_tokens=8)
    engine = Engine(session, slots=2)
    yield House(engine, Pictures(Limits(), Sources()), session)
    engine.close()


WISHES = Wishes(Sampling(), 8)


def ask(visitor: Visitor, question: str, paths=(), wishes: Wishes = WISHES) -> str:
    for _ in visitor.ask(question, visitor.open_files(list(map(str, paths))), wishes):
        pass
    return visitor.turns[-1].answer


def test_rounds_equal_those_of_a_session_and_cost_what_is_new(house, model_and_processor, pictures):
    session = ChatSession(*model_and_processor, max_new_tokens=8)
    first, second = Visitor(house), Visitor(house)
    for question, paths in [("What?", pictures[:2]), ("Where?", []), ("Who?", pictures[2:3]), ("Why?", [])]:
        expected = "".join(session.ask(question, paths))
        assert ask(first, question, paths) == session.turns[-1].answer
        assert ask(second, question, paths) == session.turns[-1].answer, expected
    cost = session.statistics[-1]
    assert f"({cost.computed_tokens} computed)" in first.status and "3 images (0 new)" in first.status


def test_a_long_dialogue_costs_its_new_tokens_only(house, pictures, work):
    visitor = Visitor(house)
    ask(visitor, "What?", pictures[:2])
    for _ in range(20):
        before = tokens(visitor)
        work.update(tokens=0, images=0)
        ask(visitor, "And now?")
        assert work["images"] == 0
        assert work["tokens"] <= tokens(visitor) - before + 8  # and the last answer once more
    assert work["tokens"] < tokens(visitor) / 8


def tokens(visitor: Visitor) -> int:
    """Those of the whole dialogue, as the page shows them."""
    return int(visitor.status.split()[0].replace(",", ""))


def test_an_answer_is_stopped(house, pictures):
    visitor = Visitor(house)
    steps = visitor.ask("What?", visitor.open_files([str(pictures[0])]), Wishes(Sampling(), 2000))
    next(steps)
    said = visitor.shown[-1].answer
    visitor.stop()
    assert len(list(steps)) < 100 and visitor.status == STOPPED
    assert visitor.turns[0].answer.startswith(said)
    while house.engine.busy:
        pass
    assert ask(visitor, "And?")


def test_a_new_dialogue_keeps_nothing_of_an_answer_that_was_begun(house, pictures):
    visitor = Visitor(house)
    steps = visitor.ask("What?", visitor.open_files([str(pictures[0])]), Wishes(Sampling(), 2000))
    next(steps)
    visitor.clear()
    assert list(steps) == [] and visitor.shown == () and visitor.status == ""
    ask(visitor, "And?")
    assert len(visitor.turns) == 1 and visitor.image_count == 0


def test_a_question_that_fails_is_not_kept(house, pictures):
    visitor = Visitor(house)
    ask(visitor, "What?", pictures[:1])
    for question, paths, words in [
        ("Look: <image>", [], "'<image>'"),
        ("many words " * 2000, [], "no room"),
        ("What?", pictures[:8], "9 images, of 8 allowed"),
        ("What?", [__file__], "not an image of a kind"),
    ]:
        with pytest.raises(ApiError) as raised:
            ask(visitor, question, paths)
        assert words in raised.value.message
        assert len(visitor.turns) == 1 and visitor.asked is None


def test_undo_clear_and_keep(house, pictures, tmp_path):
    visitor = Visitor(house)
    answer = ask(visitor, "What?", pictures[:1], Wishes(Sampling(), 8, system="Be brief."))
    visitor.save(tmp_path / "kept.json")
    said = json.loads((tmp_path / "kept.json").read_text())["messages"]
    assert [each["role"] for each in said] == ["system", "user", "assistant"] and said[2]["content"] == answer
    assert visitor.undo().question == "What?" and visitor.undo() is None
    ask(visitor, "What?", pictures[:1])
    visitor.clear()
    assert visitor.shown == () and visitor.image_count == 0


def test_images_are_shown_with_the_numbers_that_the_model_knows(house, pictures):
    visitor = Visitor(house)
    ask(visitor, "What?", pictures[:2])
    ask(visitor, "Why?", pictures[2:3])
    shown = chat_messages(visitor.shown, visitor.files)
    assert [each["role"] for each in shown] == ["user", "assistant"] * 2
    captioned = [
        [(part["props"]["label"], part["value"]["path"]) for part in each["content"] if "props" in part]
        for each in shown
    ]
    first, second, third = map(str, pictures[:3])
    assert captioned == [[("Image 1", first), ("Image 2", second)], [], [("Image 3", third)], []]
    assert [each["content"][-1]["text"] for each in shown[::2]] == ["What?", "Why?"]
