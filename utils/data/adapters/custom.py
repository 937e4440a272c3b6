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

the last two with the system text "Be brief.". A record that shows no image is text only. Paths are taken
below the image folder, absolute ones as they are; a parquet file or a `datasets` folder may hold the images
themselves. Texts are learnt as they would be asked, line breaks too. A tag goes where it stands alone, before or
behind the text; within a sentence it becomes the image's name, as the template numbers images::

    "Compare <image> with <image>, please."      Turn("Compare image 1 with image 2, please.", ...)

A `kind` in a message or in the record names the kind of its questions, by which answers are scored.

As the server does, messages of one role that follow each other are joined; an opening answer and an end without
an answer are left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from typing import Any
from urllib.parse import unquote, urlsplit

import PIL.Image

from utils.conversation import Conversation, Image, Turn
from utils.data.adapters.cleaning import TAG, UNANSWERED, media_key
from utils.data.spec import RawRecord
from utils.images import image_bytes, is_image_text, shortened

_USER, _ASSISTANT, _SYSTEM = "user", "assistant", "system"
_ROLES = {
    **dict.fromkeys((_USER, "human"), _USER),
    **dict.fromkeys((_ASSISTANT, "gpt", "model", "bot"), _ASSISTANT),
    **dict.fromkeys((_SYSTEM, "developer"), _SYSTEM),
}
_TEXT_PARTS = ("text", "input_text")
_IMAGE_PARTS = ("image_url", "input_image", "image")
_SOURCE_KEYS = ("image_url", "image", "url", "path")
_LISTS = ("image", "images")
_OTHER_LISTS = (  # read where there is none of the above
    *("image_path", "image_paths", "image_file", "image_files", "image_url", "image_urls"),
    *("img", "imgs", "img_path", "img_paths", "picture", "pictures"),
)
_TEXT_KEYS = ("from", "role", "value", "content")

_OTHER_TAG = re.compile("<(video|audio)>")
_LEADING = re.compile(rf"^(?:\s*{TAG})+\s*")
_LEADS_ON = re.compile(  # a sentence that is not over where a tag ends it
    r"\b(and|or|nor|with|without|to|of|in|on|at|from|than|like|as|for|between|about|against|vs\.?|versus)$",
    re.IGNORECASE,
)
_RUN = rf"(?<![ \t])[ \t]*{TAG}(?:\s*{TAG})*[ \t]*"
_TAGS = re.compile(rf"(?P<apart>^{_RUN}(?:\r?\n|\Z))|{_RUN}", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.?!\u2026\u3002\uff1f\uff01]['\"\u201d\u2019)\]]*$")
_OPENING = "([{\"'\u201c\u2018\u00bf\u00a1/-"
_NUMBER = re.compile("\ue002([0-9]+)\ue003")  # of an image, until the text around it is whole; private use
_KINDS = {bool: "true or false", int: "a number", float: "a number", dict: "an object"}

GREETING = "an opening answer left out"
JOINED = "messages of one role in a row joined"


@dataclass(frozen=True)
class _Message:
    """A message of any shape: its role, its text, and its images, None where a tag stands for a listed one."""

    role: str
    text: str
    images: tuple[Image | None, ...]
    kind: str = ""


def custom(record: RawRecord, keep_unanswered: bool = False) -> Conversation:
    """The conversation of a record in any of the three shapes.

    An end without an answer is left out, unless it is kept to be asked.

    Raises `ConversationError` where no question with an answer is in it, where a system text is not at the
    beginning, where tags and images do not agree, and for images that are neither files nor data or stand
    where they are not looked for.
    """
    messages: list[_Message] = []
    for number, raw in enumerate(_messages(record), start=1):
        messages.append(_read(raw, number, sum(len(each.images) for each in messages), record))
    messages = _with_listed_images(messages, record)
    _refuse_other_media(messages, record)

    system = record.fields.get("system") or None
    first = next((place for place, each in enumerate(messages) if each.role != _SYSTEM), len(messages))
    if first:
        system = _joined(messages[:first]).strip()
    rounds, repairs = _in_turn(messages[first:], keep_unanswered)
    if not rounds or any(message.role == _SYSTEM for message in rounds):
        raise record.error(
            "expected messages of user and assistant in turn, after one of system at most; found"
            f" {', '.join(message.role for message in messages[first:]) or 'none'}"
        )
    turns = [_turn(*pair) for pair in zip_longest(rounds[::2], rounds[1::2])]
    return Conversation(tuple(turns), source=record.source, system=system, repairs=repairs)


def _in_turn(messages: list[_Message], keep_unanswered: bool) -> tuple[list[_Message], tuple[str, ...]]:
    """Questions and answers in turn, and what was done to have them so."""
    rounds, repairs = [], []
    for _, group in groupby(messages, key=lambda message: message.role):
        first, *others = group
        if others:
            repairs.append(JOINED)
            images = [image for each in (first, *others) for image in each.images]
            first = replace(first, text=_joined([first, *others]), images=tuple(images))
        rounds.append(first)
    if rounds and rounds[0].role == _ASSISTANT:
        rounds, repairs = rounds[1:], [*repairs, GREETING]
    if rounds and rounds[-1].role == _USER and not keep_unanswered:
        rounds, repairs = rounds[:-1], [*repairs, UNANSWERED]
    return rounds, tuple(dict.fromkeys(repairs))


def _joined(messages: list[_Message]) -> str:
    return "\n".join(message.text for message in messages if message.text)


def _turn(question: _Message, answer: _Message | None) -> Turn:
    """The numbers of images that the question names are written, and their places noted."""
    text, mentions = "", []
    for place, piece in enumerate(_NUMBER.split(question.text.strip())):
        if place % 2:
            mentions.append(len(text))
        text += piece
    kind = question.kind or (answer.kind if answer else "")
    images = tuple(each for each in question.images if each is not None)  # listed ones are in place by now
    return Turn(text, None if answer is None else answer.text.strip(), images, tuple(mentions), kind)


def _messages(record: RawRecord) -> list[Any]:
    found = [record.fields[key] for key in ("conversations", "messages") if record.fields.get(key)]
    if len(found) != 1 or not isinstance(found[0], list):
        raise record.error(
            "expected a list of messages under conversations or messages, one of the two; its fields are"
            f" {', '.join(map(str, record.fields)) or 'none'}"
        )
    return found[0]


def _read(raw: Any, number: int, before: int, record: RawRecord) -> _Message:
    """Message `number` of a record, of which the messages before it show `before` images."""
    if not isinstance(raw, dict):
        raise record.error(f"message {number} is no object with a role and a text")
    said = raw.get("from") or raw.get("role")
    role = _ROLES.get(str(said).lower())
    if role is None:
        raise record.error(f"message {number} is from {said!r:.40}; the roles are {', '.join(_ROLES)}")
    key = "value" if raw.get("value") is not None else "content"
    content = raw.get(key)
    if not isinstance(content, str | list):
        if content is None:
            raise record.error(f"message {number} has no text, under neither value nor content")
        other = f"{content!r:.40} ({_KINDS.get(type(content), type(content).__name__)})"
        raise record.error(f"message {number} has no text, but {other} under {key}; write it in quotes")
    texts: list[str] = []
    images: list[Image | None] = []
    for part in [content] if isinstance(content, str) else content:
        found = _read_part(part, number, record)
        if isinstance(found, str):
            texts.append(_without_tags(found, before + len(images) + 1))
            images += [None] * found.count(TAG)
        else:
            images.append(found)
    text = "\n".join(texts)
    if images and role != _USER:
        raise record.error(
            f"message {number} is from {said!r} and holds an image; images belong to questions"
        )
    return _Message(role, text, tuple(images), _kind(raw) or _kind(record.fields))


def _kind(fields: Mapping[str, Any]) -> str:
    kind = fields.get("kind")
    return kind if isinstance(kind, str) else ""


def _without_tags(text: str, first: int) -> str:
    """`text` without the tags that stand apart; those within a sentence become "image 1", from number `first`.

    Apart are tags on lines of their own, before a text or between sentences, and behind a text that is whole
    without them.
    """

    def written(tags: re.Match[str]) -> str:
        nonlocal first
        numbers = range(first, first + tags[0].count(TAG))
        first = numbers.stop
        if tags["apart"]:
            return ""
        line, rest = text[: tags.start()].rpartition("\n")[2].rstrip(), text[tags.end() :]
        said = _LEADING.sub("", line)  # in the same line before it
        closes = rest[:1] in ("", "\n", "\r")
        if not said:
            is_named = (rest[:1].islower() or rest[:1] in (",", ";", ":")) and TAG in rest.partition("\n")[0]
        else:
            is_named = _SENTENCE_END.search(said) is None and (
                not closes or TAG in said or _LEADS_ON.search(said) is not None
            )
        if not is_named:
            return " " if said and not closes else ""
        name = "image" if said else "Image"
        spoken = ", ".join(f"{name} \ue002{number}\ue003" for number in numbers)
        before = " " if said and (tags[0][0] in " \t" or line[-1] not in _OPENING) else ""
        after = " " if not closes and (tags[0][-1] in " \t" or rest[0].isalnum()) else ""
        return before + spoken + after

    return _TAGS.sub(written, text).strip() if TAG in text else text


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


def _with_listed_images(messages: list[_Message], record: RawRecord) -> list[_Message]:
    """The record's own images in the places of tags, in order."""
    tags = sum(message.images.count(None) for message in messages)
    listed, keys = _listed(record.fields, _LISTS)
    if not listed and (tags or not any(message.images for message in messages)):
        listed, keys = _listed(record.fields, _OTHER_LISTS)
    if tags != len(listed):
        under = f" under {' and '.join(keys)}" if keys and keys[0] not in _LISTS else ""
        raise record.error(f"it lists {len(listed)} images{under}, but its questions hold {tags} {TAG} tags")
    images = iter([_image(source, f"image {place}", record) for place, source in enumerate(listed, start=1)])
    return [
        replace(message, images=tuple(next(images) if image is None else image for image in message.images))
        for message in messages
    ]


def _listed(fields: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[list[Any], list[str]]:
    """The images under these keys, and those of the keys that hold some."""
    found = {key: fields[key] for key in keys if fields.get(key) not in (None, "", [])}
    return [
        source for value in found.values() for source in (value if isinstance(value, list) else [value])
    ], list(found)


def _refuse_other_media(messages: list[_Message], record: RawRecord) -> None:
    """Raise where a record holds media that are not read: all its own, or what `<video>` stands for.

    A record without any is text only.
    """
    known = (*_LISTS, "system", "conversations", "messages")
    places = [("it", {key: value for key, value in record.fields.items() if key not in known})]
    if any(message.images for message in messages):
        tags = {tag for message in messages for tag in _OTHER_TAG.findall(message.text)}
        places = [
            (place, {key: fields[key] for key in fields if key.rstrip("s") in tags})
            for place, fields in places
        ]
    else:
        for number, raw in enumerate(_messages(record), start=1):
            places.append(
                (f"message {number}", {key: value for key, value in raw.items() if key not in _TEXT_KEYS})
            )
    for place, fields in places:
        if key := media_key(fields):
            raise record.error(
                f"{place} has {key}, which is not read: list images under image or images, with"
                f" {TAG} in a question for each; videos and sound are not read"
            )


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
