"""MiniGPT-4's descriptions and COCO captions, worked out by hand."""

from collections.abc import Callable

import pytest

from utils.conversation import ConversationError
from utils.data.adapters.captions import QUESTIONS, coco_caption, minigpt4
from utils.data.spec import RawRecord

Raw = Callable[..., RawRecord]


def test_the_pool_has_no_question_twice_and_each_is_one_line() -> None:
    assert len(set(QUESTIONS)) == len(QUESTIONS) >= 20
    assert all(question == question.strip() and "\n" not in question for question in QUESTIONS)


def test_what_cannot_be_asked_about_is_named(raw: Raw) -> None:
    with pytest.raises(ConversationError, match=r"set/file\.json#7: it has no caption"):
        coco_caption(raw({"filename": "42.jpg", "sentences": []}))
    with pytest.raises(ConversationError, match=r"set/file\.json#7: the answer of turn 1 is empty"):
        minigpt4(raw({"image_id": "17", "caption": " "}))
