"""Tiles in a dialogue: each is computed once and kept, and answers are those of a computation from nothing."""

from pathlib import Path

import PIL.Image
import pytest

from chat.image_kv.store import ImageStore
from chat.limits import StoreLimits
from chat.session import ChatError, ChatSession
from tests.chat.conftest import generated_answer
from utils.conversation import Conversation, Turn

VIEWS = 1 + 4  # of 40 x 40 pixels, for an encoder of 16 x 16
PICTURE = 1 + 2  # views of the first of `pictures`
TOKENS = 5  # of a view


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.png"
    PIL.Image.effect_noise((40, 40), 60).save(path)
    return path


@pytest.mark.parametrize("attention", ["mmca", "causal"])
def test_answers_equal_those_of_a_fresh_generate(build, pictures, large, attention) -> None:
    model, processor = build(attention)
    processor.tiles = 4
    session = ChatSession(model, processor, max_new_tokens=8)
    for question, images in [("What?", [large]), ("Why?", []), ("Which?", [pictures[0], large])]:
        turns = (*session.turns, Turn(question, None, session.open_images(images)))
        expected = generated_answer(model, processor, Conversation(turns), 8)
        assert "".join(session.ask(question, images)) == expected
    assert session.statistics[0].encoded_images == VIEWS
    assert session.statistics[2].encoded_images == (PICTURE if attention == "mmca" else PICTURE + VIEWS)


def test_a_tile_is_computed_once_for_all_dialogues(model_and_processor, large, tmp_path, monkeypatch) -> None:
    model, processor = model_and_processor
    store = ImageStore(model, processor, StoreLimits(folder=tmp_path / "kept"))
    whole = ChatSession(model, processor, image_store=store, max_new_tokens=2)
    list(whole.ask("What?", large))
    assert whole.statistics[0].encoded_images == 1
    monkeypatch.setattr(processor, "tiles", 4)
    first, other = whole.another(), whole.another()
    for session in (first, other):
        list(session.ask("What?", large))
    assert first.statistics[0].encoded_images == VIEWS - 1  # the whole is known
    assert other.statistics[0].encoded_images == 0
    assert store.statistics.image_tokens == VIEWS * TOKENS
    again = ImageStore(model, processor, StoreLimits(folder=tmp_path / "kept"))
    later = ChatSession(model, processor, image_store=again, max_new_tokens=2)
    list(later.ask("And?", PIL.Image.open(large).resize((16, 16))))
    list(later.ask("What?", large))
    assert [each.encoded_images for each in later.statistics] == [1, 0]  # read from the disk


def test_a_dialogue_that_tiles_make_too_long_is_refused(model_and_processor, large, monkeypatch) -> None:
    model, processor = model_and_processor
    session = ChatSession(model, processor, max_seq_len=100, max_new_tokens=2)
    list(session.ask("What?", large))
    session.clear()
    monkeypatch.setattr(processor, "tiles", 4)
    with pytest.raises(ChatError, match="leaves no room for an answer within 100"):
        session.ask("What?", large)
