"""Own data in its three shapes, worked out by hand; what does not fit is mended, or named with what was found."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from utils.conversation import Conversation, ConversationError, Image, Turn, join
from utils.data.adapters.cleaning import UNANSWERED
from utils.data.adapters.custom import GREETING, JOINED, custom
from utils.data.spec import RawRecord

Raw = Callable[..., RawRecord]


def said(*texts: str) -> list[dict]:
    """LLaVA's messages: human and gpt in turn."""
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def messages(*contents: Any) -> list[dict]:
    """OpenAI's messages: user and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def shown(url: Any) -> dict:
    return {"type": "image_url", "image_url": url}


def text(content: str) -> dict:
    return {"type": "text", "text": content}


@pytest.fixture
def png() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (2, 3), (9, 8, 7)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "tagged", ["<image>\nWhat lies here?", "What lies here?\n<image>", "<image>What lies here?"]
)
@pytest.mark.parametrize("image", ["desk.jpg", ["desk.jpg"]])
def test_llava(raw: Raw, folders: tuple[Path, Path], tagged: str, image: object) -> None:
    record = raw(
        {"id": 1, "image": image, "conversations": said(tagged, "A pen.\nÀ NASA 🖊. ", "Old?", "No.")}
    )
    assert custom(record) == Conversation(
        (
            Turn("What lies here?", "A pen.\nÀ NASA 🖊.", (Image(folders[0] / "desk.jpg"),)),
            Turn("Old?", "No."),
        ),
        source="set/file.json#7",
    )


def test_sharegpt(raw: Raw, folders: tuple[Path, Path]) -> None:
    turns = said("Compare <image>\n<image>\nplease.", "One is a cat.", "<image>And this?", "A dog.")
    conversation = custom(
        raw({"images": ["a.png", "sub/b.png", "a.png"], "conversations": turns, "system": "Be\nbrief."})
    )
    first, second = Image(folders[0] / "a.png"), Image(folders[0] / "sub/b.png")
    assert conversation == Conversation(
        (
            Turn("Compare\nplease.", "One is a cat.", (first, second)),
            Turn("And this?", "A dog.", (first,)),
        ),
        source="set/file.json#7",
        system="Be\nbrief.",
    )
    as_messages = messages("Compare <image>\n<image>\nplease.", "One is a cat.", "<image>And this?", "A dog.")
    same = raw({"images": ["a.png", "sub/b.png", "a.png"], "messages": as_messages, "system": "Be\nbrief."})
    assert custom(same) == conversation


def test_openai(raw: Raw, folders: tuple[Path, Path], png: bytes) -> None:
    data_url = "data:image/png;base64," + base64.b64encode(png).decode()
    asked = [shown({"url": "desk.jpg"}), text("What lies here,"), shown({"url": data_url}), text("and here?")]
    fields = {
        "messages": [
            {"role": "system", "content": [text("Be brief.")]},
            *messages(asked, [text("A pen."), text("A cup.")], "Sure?", "Yes."),
        ]
    }
    conversation = custom(raw(fields))
    desk, embedded = conversation.turns[0].images
    assert conversation.system == "Be brief."
    assert [(turn.question, turn.answer) for turn in conversation.turns] == [
        ("What lies here,\nand here?", "A pen.\nA cup."),
        ("Sure?", "Yes."),
    ]
    assert desk == Image(folders[0] / "desk.jpg")
    assert embedded.open().getpixel((0, 0)) == (9, 8, 7)
    assert embedded.name == "set/file.json#7, message 2"


@pytest.mark.parametrize(
    "part",
    [
        shown("desk.jpg"),
        {"type": "input_image", "image_url": "desk.jpg"},
        {"type": "image", "image": "desk.jpg", "text": None},
        shown({"url": "file://{folder}/desk.jpg"}),
    ],
)
def test_ways_to_write_a_picture(raw: Raw, folders: tuple[Path, Path], part: dict) -> None:
    url = part.get("image_url")
    if isinstance(url, dict):
        part = part | {"image_url": {"url": url["url"].replace("{folder}", str(folders[0]))}}
    image = custom(raw({"messages": messages([part, text("What?")], "A pen.")})).images[0]
    assert Path(image.source) == folders[0] / "desk.jpg"


def test_pictures_that_the_record_holds_itself(raw: Raw, png: bytes) -> None:
    decoded = PIL.Image.new("RGB", (1, 2))
    held = [png, {"bytes": png, "path": "a.png"}, decoded]
    images = custom(raw({"images": held, "messages": messages("<image><image><image>What?", "Dots.")})).images
    assert [image.source for image in images] == [png, png, decoded]
    assert images[1].name == "set/file.json#7, image 2"


@pytest.mark.parametrize(
    "extra", [{}, {"image": None}, {"image": ""}, {"images": []}, {"images": None, "system": ""}]
)
def test_text_only(raw: Raw, extra: dict) -> None:
    conversation = custom(raw({"conversations": said("Who\nare you?", "A model."), **extra}))
    assert conversation == Conversation((Turn("Who\nare you?", "A model."),), source="set/file.json#7")


def test_a_line_break_stays_as_it_would_be_asked(raw: Raw) -> None:
    asked = "Which?\n\nA. a pen\n\tB. a cup  \r\nC. none"
    conversation = custom(raw({"image": "a", "conversations": said(f"<image>\n{asked}", "A.")}))
    assert conversation.turns[0].question == asked


# A question with n tags, and what is learnt of it.
TAGGED = [
    ("compare <image> with <image> please", 2, "compare image 1 with image 2 please"),
    ("Compare this with <image>", 1, "Compare this with image 1"),
    ("<image> and <image>: what differs?", 2, "Image 1 and image 2: what differs?"),
    ("<image>\nIs it like <image>?", 2, "Is it like image 2?"),
    ("What is in <image><image>, NASA?", 2, "What is in image 1, image 2, NASA?"),
    ("Look. <image> What is it?", 1, "Look. What is it?"),
    ("First line\n<image>\n \n<image> \nlast line", 2, "First line\nlast line"),
]


@pytest.mark.parametrize(("tagged", "images", "expected"), TAGGED)
def test_a_tag_within_a_sentence_becomes_the_name_of_its_image(
    raw: Raw, tagged: str, images: int, expected: str
) -> None:
    names = [f"{number}.png" for number in range(images)]
    for fields in (
        {"image": names, "conversations": said(tagged, "A.")},
        {"images": names, "messages": messages([text(tagged)], "A.")},
    ):
        (turn,) = custom(raw(fields)).turns
        assert (turn.question, len(turn.images)) == (expected, images)


def test_images_are_named_by_their_numbers_in_the_whole_dialogue(raw: Raw) -> None:
    shown_first = said("<image>\nWhat?", "A pen.", "Is <image> older?", "Yes.")
    conversation = custom(raw({"images": ["a", "b"], "conversations": shown_first}))
    assert [turn.question for turn in conversation.turns] == ["What?", "Is image 2 older?"]
    other = custom(raw({"images": ["c"], "conversations": said("What is on <image>, image 1?", "A cup.")}))
    joined = join([conversation, other, conversation])
    assert [turn.question for turn in joined.turns] == [
        *("What?", "Is image 2 older?", "What is on image 3, image 1?", "What?", "Is image 5 older?")
    ]
    assert join([other, joined]).turns[2].question == "Is image 3 older?"


GREETED = [{"from": "gpt", "value": "Hello."}]
ROUND = (("What?", "A pen."),)


@pytest.mark.parametrize(
    ("said", "rounds", "repairs"),
    [
        (said("What?", "A pen."), ROUND, ()),
        (GREETED + said("What?", "A pen."), ROUND, (GREETING,)),
        (said("What?", "A pen.", "Thanks."), ROUND, (UNANSWERED,)),
        (said("Look.") + said("What?", "Red."), (("Look.\nWhat?", "Red."),), (JOINED,)),
        ([*said("What?", "A pen."), said("", "A cup.")[1]], (("What?", "A pen.\nA cup."),), (JOINED,)),
        (
            GREETED * 2 + said("What?", "A pen.", "More?") + said("Thanks."),
            ROUND,
            (JOINED, GREETING, UNANSWERED),
        ),
    ],
)
def test_rounds_that_are_complete_are_used(
    raw: Raw, said: list[dict], rounds: tuple, repairs: tuple[str, ...]
) -> None:
    for system in ([], [{"from": "system", "value": "Be brief."}]):
        conversation = custom(raw({"conversations": system + said}))
        assert tuple((turn.question, turn.answer) for turn in conversation.turns) == rounds
        assert conversation.repairs == repairs
        assert conversation.system == ("Be brief." if system else None)


def test_images_of_joined_and_of_dropped_questions_stay_with_their_tags(raw: Raw) -> None:
    asked = [*said("<image>\nLook.")[:1], *said("Like <image>?", "No.", "<image> Old?")]
    conversation = custom(raw({"images": ["a", "b", "c"], "conversations": asked}))
    (turn,) = conversation.turns
    assert turn.question == "Look.\nLike image 2?"
    assert [Path(image.source).name for image in turn.images] == ["a", "b"]


@pytest.mark.parametrize("key", ["image_path", "img", "pictures"])
def test_other_keys_are_read_where_there_is_no_image_otherwise(
    raw: Raw, folders: tuple[Path, Path], key: str
) -> None:
    asked = said("<image>\nWhat?", "A pen.")
    desk = Image(folders[0] / "desk.jpg")
    assert custom(raw({key: "desk.jpg", "conversations": asked})).images == (desk,)
    assert custom(raw({"image": "desk.jpg", key: "other.jpg", "conversations": asked})).images == (desk,)
    in_message = messages([shown("desk.jpg"), text("What?")], "A pen.")
    assert custom(raw({key: "other.jpg", "messages": in_message})).images == (desk,)
    with pytest.raises(ConversationError, match=f"lists 1 images under {key}, but its questions hold 0"):
        custom(raw({key: "desk.jpg", "conversations": said("What?", "A pen.")}))


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ({"video": "v.mp4"}, "video"),
        ({"audio": {"bytes": b"x"}}, "audio"),
        ({"file": "photos/a.JPG"}, "file"),
    ],
)
def test_media_under_keys_that_are_not_read_make_a_bad_record(raw: Raw, extra: dict, key: str) -> None:
    with pytest.raises(ConversationError, match=f"#7: it has {key}, which is not read: list images under"):
        custom(raw({**extra, "conversations": said("What?", "A pen.")}))
    with pytest.raises(ConversationError, match=f"message 1 has {key}, which is not read"):
        custom(raw({"messages": [{"role": "user", "content": "?", **extra}, *messages("", "A.")[1:]]}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image": "a", "conversations": said("What?", "A pen.")},
            "lists 1 images, but its questions hold 0",
        ),
        ({"conversations": said("<image>What?", "A pen.")}, "lists 0 images, but its questions hold 1"),
        ({"conversations": said("Hi", "See <image>")}, "message 2 is from 'gpt' and holds an image"),
        ({"conversations": said("What?")}, "in turn, .* found user"),
        (
            {"messages": [*messages("What?", "A."), {"role": "system", "content": "No."}]},
            "user, assistant, system",
        ),
        (
            {"messages": [{"role": "tool", "content": "3"}]},
            "message 1 is from 'tool'; the roles are user, human",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "message 1 has no text"),
        (
            {"messages": messages("How many?", 3)},
            r"message 2 has no text, but 3 \(a number\) under content; write it in quotes",
        ),
        ({"messages": messages([{"type": "audio"}], "A.")}, "message 1 holds a part of type 'audio'"),
        (
            {"messages": messages([shown("https://x.org/a.png")], "A.")},
            "message 1 is a web address .*download",
        ),
        (
            {"messages": messages([shown("data:image/png;base64,%%")], "A.")},
            "message 1 cannot be read: it is not valid base64",
        ),
        ({"image": "a", "text": "?"}, "conversations or messages.*its fields are image, text"),
        ({"conversations": said("?", "A."), "messages": messages("?", "A.")}, "one of the two"),
        ({"image": "a", "conversations": said("<image>\n", "A.")}, "the question of turn 1 is empty"),
    ],
)
def test_what_does_not_fit_is_named(raw: Raw, fields: dict, message: str) -> None:
    with pytest.raises(ConversationError, match=rf"^set/file\.json#7: .*{message}"):
        custom(raw(fields))
