"""MiniGPT-4's descriptions and COCO captions, worked out by hand."""

from collections.abc import Callable

import pytest

from utils.conversation import ConversationError
from utils.data.adapters.captions import QUESTIONS, coco_caption, minigpt4
from utils.data.spec import RawRecord

Raw = Callable[..., RawRecord]
KARPATHY = {
    "filename": "COCO_val2014_000000000042.jpg",
    "filepath": "val2014",
    "split": "restval",
    "sentences": [
        {"raw": "A shoe on a shelf.", "tokens": ["a", "shoe"]},
        {"raw": " Une chaussure à NASA\n"},
        {"raw": "Somebody put a shoe away"},
    ],
}


def test_draws_depend_on_the_seed_alone(raw: Raw) -> None:
    first, again = ([coco_caption(raw(KARPATHY, seed)) for seed in range(20)] for _ in range(2))
    assert first == again
    assert len({conversation.turns[0].question for conversation in first}) > 5


def test_the_pool_has_no_question_twice_and_each_is_one_line() -> None:
    assert len(set(QUESTIONS)) == len(QUESTIONS) >= 20
    assert all(question == question.strip() and "\n" not in question for question in QUESTIONS)


def test_what_cannot_be_asked_about_is_named(raw: Raw) -> None:
    with pytest.raises(ConversationError, match=r"set/file\.json#7: it has no caption"):
        coco_caption(raw(KARPATHY | {"sentences": []}))
    with pytest.raises(ConversationError, match=r"set/file\.json#7: the answer of turn 1 is empty"):
        minigpt4(raw({"image_id": "17", "caption": " "}))
