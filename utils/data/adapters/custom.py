"""Anyone's own data, in the three shapes that people have; the shape is seen in each record.

LLaVA: `image` is one path or a list of them, and a tag in a question shows the next one::

    {"image": "desk.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat lies on the desk?"}, {"from": "gpt", "value": "A pen."}]}

ShareGPT: `images` beside `conversations` or `messages`, the tags as above, `system` where there is a system
text::

    {"images": ["desk.jpg"], "system": "Be brief.", "messages": [
        {"role": "user", "content": "<image>What lies on the desk?"}, {"role": "assistant", "content": "A pen."}]}

OpenAI: the pictures stand in the messages, as paths or as data URLs (or as base64 alone, in all shapes)::

    {"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "desk.jpg"}},
                                     {"type": "text", "text": "What lies on the desk?"}]},
        {"role": "assistant", "content": "A pen."}]}

All three become::

    Turn("What lies on the desk?", "A pen.", (Image("{image_folder}/desk.jpg"),))

the last two with the system text "Be brief.". A record that shows no picture is text only. Paths are taken
below the image folder, absolute ones as they are; a parquet file or a `datasets` folder may hold the pictures
themselves. In questions a line break becomes a space, as in all data.
"""

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

import PIL.Image

from utils.conversation import Conversation, Image, Turn
from utils.data.adapters.texts import TAG, one_line
from utils.data.spec import RawRecord
from utils.image_bytes import image_bytes, is_image_text, shortened

_USER, _ASSISTANT, _SYSTEM = "user", "assistant", "system"
_ROLES = {
    **dict.fromkeys((_USER, "human"), _USER),
    **dict.fromkeys((_ASSISTANT, "gpt", "model", "bot"), _ASSISTANT),
    **dict.fromkeys((_SYSTEM, "developer"), _SYSTEM),
}
_TEXT_PARTS = ("text", "input_text")
_IMAGE_PARTS = ("image_url", "input_image", "image")
_SOURCE_KEYS = ("image_url", "image", "url", "path")


@dataclass(frozen=True)
class _Message:
    """A message of any shape: its role, its text, and its pictures, None where a tag stands for a listed one."""

    role: str
    text: str
    images: tuple[Image | None, ...]


def custom(record: RawRecord) -> Conversation:
    """The conversation of a record in any of the three shapes.

    Raises `ConversationError` where messages are not questions and answers in turn, after a system text at
    most, where tags and pictures do not agree, and for pictures that are neither files nor data.
    """
    messages = [_read(raw, number, record) for number, raw in enumerate(_messages(record), start=1)]
    system = record.fields.get("system")
    if messages and messages[0].role == _SYSTEM:
        system = messages.pop(0).text
    roles = [message.role for message in messages]
    if not roles or roles != [_USER, _ASSISTANT] * (len(roles) // 2):
        raise record.error(
            "expected messages of user and assistant in turn, after one of system at most; found"
            f" {', '.join(roles) or 'none'}"
        )
    questions = _with_listed_images(messages[::2], record)
    turns = [
        Turn(one_line(question.text), answer.text, question.images)
        for question, answer in zip(questions, messages[1::2], strict=True)
    ]
    return Conversation(tuple(turns), source=record.source, system=system or None)


def _messages(record: RawRecord) -> list[Any]:
    found = [record.fields[key] for key in ("conversations", "messages") if record.fields.get(key)]
    if len(found) != 1 or not isinstance(found[0], list):
        raise record.error(
            "expected a list of messages under conversations or messages, one of the two; its fields are"
            f" {', '.join(map(str, record.fields)) or 'none'}"
        )
    return found[0]


def _read(raw: Any, number: int, record: RawRecord) -> _Message:
    if not isinstance(raw, dict):
        raise record.error(f"message {number} is no object with a role and a text")
    said = raw.get("from") or raw.get("role")
    role = _ROLES.get(str(said).lower())
    if role is None:
        raise record.error(f"message {number} is from {said!r}; the roles are {', '.join(_ROLES)}")
    content = raw["value"] if raw.get("value") is not None else raw.get("content")
    if not isinstance(content, str | list):
        raise record.error(f"message {number} has no text, under neither value nor content")
    texts: list[str] = []
    images: list[Image | None] = []
    for part in [content] if isinstance(content, str) else content:
        found = _read_part(part, number, record)
        if isinstance(found, str):
            # What stands around a tag is apart, as if the tag were a line of its own.
            texts.append(found.replace(TAG, "\n"))
            images += [None] * found.count(TAG)
        else:
            images.append(found)
    if images and role != _USER:
        raise record.error(
            f"message {number} is from {said!r} and holds an image; images belong to questions"
        )
    return _Message(role, "\n".join(texts).strip(), tuple(images))


def _read_part(part: Any, number: int, record: RawRecord) -> str | Image | None:
    """A text, a picture, or None for a picture that the record lists."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"]
    if kind in _IMAGE_PARTS:
        source = next((part[key] for key in _SOURCE_KEYS if part.get(key) is not None), None)
        return None if source is None else _image(source, f"message {number}", record)
    raise record.error(
        f"message {number} holds a part of type {kind!r} without what belongs to it; known are texts"
        f" ({', '.join(_TEXT_PARTS)}) and images ({', '.join(_IMAGE_PARTS)})"
    )


def _with_listed_images(questions: list[_Message], record: RawRecord) -> list[_Message]:
    """The record's own pictures in the places of tags, in order."""
    listed = []
    for key in ("image", "images"):
        value = record.fields.get(key)
        if value is not None and value != "":
            listed += value if isinstance(value, list) else [value]
    tags = sum(question.images.count(None) for question in questions)
    if tags != len(listed):
        raise record.error(f"it lists {len(listed)} images, but its questions hold {tags} {TAG} tags")
    images = iter([_image(source, f"image {place}", record) for place, source in enumerate(listed, start=1)])
    return [
        replace(question, images=tuple(next(images) if image is None else image for image in question.images))
        for question in questions
    ]


def _image(source: Any, place: str, record: RawRecord) -> Image:
    """A picture from a path, a URL, bytes, a picture, or an object that holds one of them."""
    name = f"{record.source}, {place}"
    if isinstance(source, dict):
        held = [source[key] for key in ("bytes", *_SOURCE_KEYS) if source.get(key) is not None]
        source = held[0] if held else None
    if isinstance(source, bytes | PIL.Image.Image):
        return Image(source, name)
    if not isinstance(source, str) or not source.strip():
        raise record.error(f"{place} is neither a path nor a picture")
    if is_image_text(source):
        try:
            return Image(image_bytes(source), name)
        except ValueError as error:
            raise record.error(f"{place} cannot be read: {error}") from error
    if source.startswith(("http://", "https://")):
        raise record.error(f"{place} is a web address ({shortened(source)}); download it and give its path")
    return record.image(unquote(urlsplit(source).path) if source.startswith("file://") else source)
