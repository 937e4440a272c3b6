"""LLaVA's records become conversations; what is not in the format is named."""

from pathlib import Path

import pytest

from utils.conversation import ConversationError, Image
from utils.data.adapters.llava import llava, llava_dial
from utils.data.spec import RawRecord

FOLDER = Path("coco/train2017")


def raw(*values: str, image: object = "42.jpg") -> RawRecord:
    roles = ["human", "gpt"] * len(values)
    messages = [{"from": role, "value": value} for role, value in zip(roles, values, strict=False)]
    fields = {"id": "42", "conversations": messages} | ({} if image is None else {"image": image})
    return RawRecord(fields, "llava/detail_23k.json#17", (FOLDER,))


def picture(name: str = "42.jpg") -> Image:
    return Image(FOLDER / name)


def test_several_pictures_come_in_order_of_their_tags() -> None:
    conversation = llava_dial(
        raw("<image>\n<image>\nSame?", "No.", "<image>\nAnd this?", "Yes.", image=["a", "b", "c"])
    )
    assert [turn.images for turn in conversation.turns] == [(picture("a"), picture("b")), (picture("c"),)]


@pytest.mark.parametrize("end", [(), ("Is it alone?", "No.")])
def test_an_end_without_an_answer_is_left_out(end: tuple[str, ...]) -> None:
    whole = llava_dial(raw("<image>\nWhat?", "A dog.", *end))
    cut = llava_dial(raw("<image>\nWhat?", "A dog.", *end, "Thanks!"))
    assert (cut, cut.repairs, whole.repairs) == (whole, ("an unanswered end left out",), ())


def test_an_image_under_another_key_is_named() -> None:
    record = raw("What?", "A dog.", image=None)
    record.fields["video"] = "42.mp4"
    with pytest.raises(ConversationError, match="it has no image, but video; images belong under"):
        llava_dial(record)


def test_a_record_without_a_picture_is_text_only() -> None:
    assert llava(raw("Who are you?", "A model.", image=None)).images == ()
