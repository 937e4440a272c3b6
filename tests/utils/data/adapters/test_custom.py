"""Own data in its three shapes, worked out by hand; what does not fit is named with what was found."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from utils.conversation import Conversation, ConversationError, Image, Turn
from utils.data.adapters.custom import custom
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
    "tagged", ["<image>\nWhat lies here?", "What lies here?\n<image>", "<image>What\nlies here?"]
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
            Turn("Compare please.", "One is a cat.", (first, second)),
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
        ("What lies here, and here?", "A pen.\nA cup."),
        ("Sure?", "Yes."),
    ]
    assert desk == Image(folders[0] / "desk.jpg")
    assert embedded.open().getpixel((0, 0)) == (9, 8, 7)
    assert embedded.name == "set/file.json#7, message 2"


@pytest.mark.parametrize(
    "part",
    [
        shown("desk.jpg"),
        shown({"url": "desk.jpg", "detail": "low"}),
        {"type": "input_image", "image_url": "desk.jpg"},
        {"type": "image", "image": "desk.jpg", "text": None},
        {"type": "image", "path": "desk.jpg"},
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


def test_parts_without_a_source_take_the_listed_pictures(raw: Raw, folders: tuple[Path, Path]) -> None:
    asked = [{"type": "image", "text": None}, {"type": "text", "text": "What?", "image": None}]
    conversation = custom(
        raw({"images": [{"bytes": None, "path": "a.png"}], "messages": messages(asked, "Dots.")})
    )
    assert conversation.turns == (Turn("What?", "Dots.", (Image(folders[0] / "a.png"),)),)


@pytest.mark.parametrize(
    "extra", [{}, {"image": None}, {"image": ""}, {"images": []}, {"images": None, "system": ""}]
)
def test_text_only(raw: Raw, extra: dict) -> None:
    conversation = custom(raw({"conversations": said("Who\nare you?", "A model."), **extra}))
    assert conversation == Conversation((Turn("Who are you?", "A model."),), source="set/file.json#7")


def test_absolute_paths_stay(raw: Raw) -> None:
    image = custom(
        raw({"image": "/photos/desk.jpg", "conversations": said("<image>What?", "A pen.")})
    ).images[0]
    assert image.source == Path("/photos/desk.jpg")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image": "a", "conversations": said("What?", "A pen.")},
            "lists 1 images, but its questions hold 0",
        ),
        ({"image": "a", "conversations": said("<image><image>?", "A.")}, "lists 1 images, but .* hold 2"),
        ({"conversations": said("<image>What?", "A pen.")}, "lists 0 images, but its questions hold 1"),
        ({"images": ["a", "b"], "messages": messages("<image>?", "A.")}, "lists 2 images, but .* hold 1"),
        ({"messages": messages([shown("a"), text("<image>?")], "A.")}, "lists 0 images, but .* hold 1"),
        ({"conversations": said("Hi", "See <image>")}, "message 2 is from 'gpt' and holds an image"),
        ({"messages": messages("Hi", [text("See"), shown("a")])}, "message 2 is from 'assistant' and holds"),
        ({"conversations": said("What?")}, "in turn, .* found user"),
        ({"conversations": said("What?", "A.")[::-1]}, "found assistant, user"),
        (
            {"messages": [*messages("What?", "A."), {"role": "system", "content": "No."}]},
            "user, assistant, system",
        ),
        (
            {"messages": [{"role": "tool", "content": "3"}]},
            "message 1 is from 'tool'; the roles are user, human",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "message 1 has no text"),
        ({"messages": ["What?", "A."]}, "message 1 is no object"),
        ({"messages": messages([{"type": "audio"}], "A.")}, "message 1 holds a part of type 'audio'"),
        ({"messages": messages([{"type": "text"}], "A.")}, "message 1 holds a part of type 'text' without"),
        (
            {"messages": messages([shown("https://x.org/a.png")], "A.")},
            "message 1 is a web address .*download",
        ),
        (
            {"messages": messages([shown("data:image/png;base64,%%")], "A.")},
            "message 1 cannot be read: it is not valid base64",
        ),
        (
            {"messages": messages([shown("data:image/png,abc")], "A.")},
            "message 1 cannot be read: it is not base64",
        ),
        ({"image": {"bytes": None}, "messages": messages("<image>?", "A.")}, "image 1 is neither a path nor"),
        ({"images": [""], "messages": messages("<image>?", "A.")}, "image 1 is neither a path nor"),
        ({"image": "", "messages": messages("<image>?", "A.")}, "lists 0 images"),
        ({"image": "a", "text": "?"}, "conversations or messages.*its fields are image, text"),
        ({"conversations": said("?", "A."), "messages": messages("?", "A.")}, "one of the two"),
        ({"conversations": "What?"}, "expected a list of messages"),
        ({"image": "a", "conversations": said("<image>\n", "A.")}, "the question of turn 1 is empty"),
        ({"conversations": said("What?", " ")}, "the answer of turn 1 is empty"),
        ({}, "its fields are none"),
    ],
)
def test_what_does_not_fit_is_named(raw: Raw, fields: dict, message: str) -> None:
    with pytest.raises(ConversationError, match=rf"^set/file\.json#7: .*{message}"):
        custom(raw(fields))
