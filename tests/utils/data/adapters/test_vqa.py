"""A-OKVQA and OCR-VQA, worked out by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from utils.conversation import Conversation, ConversationError, Image, Turn
from utils.data.adapters.vqa import WHY, aokvqa, ocr_vqa
from utils.data.spec import LeftOut, RawRecord

Raw = Callable[..., RawRecord]
UMBRELLA = {
    "image_id": 4211,
    "question": "What is the\numbrella for?",
    "choices": ["rain", " sun ", "show", "snow"],
    "correct_choice_idx": 1,
    "rationales": ["the sky is clear ", "People wear sunglasses.", "The sky is clear.", " ", "NASA says so!"],
}
COVER = {
    "id": "0140000001",
    "imageURL": "http://images.example/I/51ab.c.gif?size=2.jpg",
    "questions": ["Who wrote\nthis book?", "What is the title?"],
    "answers": ["Ann Reed ", "Low Tide: l'été"],
    "title": "Low Tide",
}


def test_a_choice_and_its_reasons(raw: Raw, folders: tuple[Path, Path]) -> None:
    conversation = aokvqa(raw(UMBRELLA))
    why = conversation.turns[0].question.removeprefix("What is the umbrella for? ")
    assert why in WHY
    assert conversation == Conversation(
        (
            Turn(
                f"What is the umbrella for? {why}",
                "The answer is sun. The sky is clear. People wear sunglasses. NASA says so!",
                (Image(folders[0] / "000000004211.jpg"),),
            ),
        ),
        source="set/file.json#7",
    )
    assert {aokvqa(raw(UMBRELLA, seed)).turns[0].question.split("? ", 1)[1] for seed in range(90)} == set(WHY)


@pytest.mark.parametrize("right", [4, -1])
def test_a_choice_that_is_not_there_is_named(raw: Raw, right: int) -> None:
    with pytest.raises(
        ConversationError, match=rf"set/file\.json#7: its correct choice is number {right} of 4"
    ):
        aokvqa(raw(UMBRELLA | {"correct_choice_idx": right}))


@pytest.mark.parametrize(
    ("size", "left_out"), [((1, 1), True), ((1, 40), True), ((40, 1), True), ((2, 2), False)]
)
def test_pictures_of_a_pixel_are_left_out(
    raw: Raw, write_picture: Callable, size: tuple[int, int], left_out: bool
) -> None:
    write_picture("0140000001.gif", size=size)
    assert isinstance(ocr_vqa(raw(COVER)), LeftOut) == left_out


@pytest.mark.parametrize(("questions", "answers"), [([], []), (["Who?"], ["Ann", "Reed"])])
def test_questions_without_their_answers_are_named(raw: Raw, questions: list, answers: list) -> None:
    with pytest.raises(ConversationError, match=r"set/file\.json#7: it has . questions and . answers"):
        ocr_vqa(raw(COVER | {"questions": questions, "answers": answers}))
