"""SparklesDialogue: dialogues that speak of several pictures by name.

Huang et al. 2023, https://arxiv.org/abs/2308.16463. Two files, SparklesDialogueCC and SparklesDialogueVG, each
with an image folder of its own. A record, invented here in the published shape::

    {"dialogue": [
        {"role": "user", "images": [{"image_id": 14}, {"image_id": 1417}],
         "content": "Which is older, the boat in IMAGE#14<Img><ImageHere></Img> or the one in
                     IMAGE#1417<Img><ImageHere></Img>?"},
        {"role": "assistant", "content": "IMAGE#1417 shows the older one."},
        {"role": "user", "content": "And IMAGE#9<Img><ImageHere></Img>?", "images": [{"image_id": 9}]},
        {"role": "assistant", "content": "A NASA rocket: no boat at all."}]}

Each picture gets a spoken name by its place in the dialogue, in one of three manners, drawn once a dialogue::

    Turn("Which is older, the boat in image a or the one in image b?", "Image b shows the older one.",
         (Image(".../14.jpg"), Image(".../1417.jpg")))
    Turn("And image c?", "A NASA rocket: no boat at all.", (Image(".../9.jpg"),))

Left out, as the published recipe does: dialogues in which user and assistant do not take turns, or the last
question has no answer, or an image file is not there; and those that name a picture they never show.
"""

import re
from string import ascii_lowercase, ascii_uppercase

from utils.conversation import Conversation, Turn
from utils.data.adapters.cleaning import capitalize_sentences, capitalized, one_line, pick
from utils.data.spec import LeftOut, RawRecord

_TAG = re.compile(r"[ \t]*<Img><ImageHere></Img>")
_MENTION = "IMAGE#"
_LINE_START = r"(?m:(?P<line>^[ \t]*(?:[-*\u2022]\s+)?))?"
_ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"),
    *("eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth"),
    *("eighteenth", "nineteenth", "twentieth", "twenty-first", "twenty-second", "twenty-third"),
    *("twenty-fourth", "twenty-fifth", "twenty-sixth"),
)
MANNERS = (
    tuple(f"image {letter}" for letter in ascii_lowercase),
    tuple(f"image {letter}" for letter in ascii_uppercase),
    tuple(f"the {ordinal} image" for ordinal in _ORDINALS),
)
"""Manners of naming pictures by their places."""


def sparkles_dialogue(record: RawRecord) -> Conversation | LeftOut:
    """All rounds of a dialogue, each picture in the round whose question brings it."""
    messages = record.fields["dialogue"]
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        return LeftOut("user and assistant do not take turns")
    shown = [[str(image["image_id"]) for image in message.get("images") or ()] for message in messages]
    if any(shown[1::2]):
        raise record.error("an answer brings an image; images belong to questions")
    files = {image_id: f"{image_id}.jpg" for image_ids in shown for image_id in image_ids}
    if not all(record.has_image(name, record.file) for name in files.values()):
        return LeftOut("an image file of it is not there")

    places = [image_id for image_ids in shown for image_id in image_ids]
    if len(places) > len(_ORDINALS):
        return LeftOut(f"it has more than {len(_ORDINALS)} images")
    manner = pick(MANNERS, record.rng)
    names = {image_id: manner[places.index(image_id)] for image_id in files}
    texts = [_spoken(message["content"], names) for message in messages]
    if any(_MENTION in text for text in texts):
        return LeftOut("it speaks of an image that it never shows")
    turns = [
        Turn(
            one_line(question),
            answer,
            tuple(record.image(files[image_id], record.file) for image_id in image_ids),
        )
        for question, answer, image_ids in zip(texts[::2], texts[1::2], shown[::2], strict=True)
    ]
    return Conversation(tuple(turns), source=record.source)


def _spoken(content: str, names: dict[str, str]) -> str:
    """`content` without tags, with names in the place of ids, and with a capital at the start of each sentence."""
    text = _TAG.sub("", content).strip()
    if names:
        # An id may be the beginning of another: only a whole one counts.
        ids = "|".join(re.escape(image_id) for image_id in sorted(names, key=len, reverse=True))
        mention = re.compile(rf"{_LINE_START}{_MENTION}(?P<id>{ids})(?![0-9A-Za-z_])")
        text = mention.sub(lambda match: _named(match, names), text)
    return capitalize_sentences(text)


def _named(match: re.Match[str], names: dict[str, str]) -> str:
    name = names[match["id"]]
    return name if match["line"] is None else match["line"] + capitalized(name)
