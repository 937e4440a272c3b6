"""LLaVA-Instruct: conversations about COCO pictures.

Liu et al. 2023, https://arxiv.org/abs/2304.08485. A record, invented here in the published shape::

    {"id": "000000000042", "image": "000000000042.jpg", "conversations": [
        {"from": "human", "value": "What is the dog doing?\\n<image>"},
        {"from": "gpt", "value": "It sleeps on a red sofa."},
        {"from": "human", "value": "Is it alone?"},
        {"from": "gpt", "value": "No, a cat lies beside it."}]}

`llava_dial` makes two turns of it, the picture in the first; `llava`, whose files hold one round a record,
makes one::

    Turn("What is the dog doing?", "It sleeps on a red sofa.", (Image("coco/train2017/000000000042.jpg"),))
    Turn("Is it alone?", "No, a cat lies beside it.")

`image` may also be a list: the tags then stand for its pictures in order. A record without `image` is text
only. Rounds that are complete are used: an end without an answer is left out. What differs from the code of 2023
is listed in docs/differences.md.
"""

from dataclasses import replace
from typing import Any

from utils.conversation import Conversation, Turn
from utils.data.adapters.cleaning import TAG, UNANSWERED, media_key, one_line
from utils.data.spec import RawRecord


def llava(record: RawRecord) -> Conversation:
    """The first round of a record; its one picture comes with the question, whether a tag is there or not."""
    messages, names, repairs = _read(record)
    if len(names) != 1:
        conversation = llava_dial(record)
        return replace(conversation, turns=conversation.turns[:1])
    human, gpt, *_ = messages
    turn = Turn(_untagged(human["value"]), gpt["value"].strip(), (record.image(names[0]),))
    return Conversation((turn,), source=record.source, repairs=repairs)


def llava_dial(record: RawRecord) -> Conversation:
    """All complete rounds of a record; each tag brings the next picture into the round that holds it.

    The tag goes, and a line break inside a question becomes a space.
    """
    messages, names, repairs = _read(record)
    tags = [message["value"].count(TAG) for message in messages[::2]]
    if sum(tags) != len(names):
        raise record.error(f"it lists {len(names)} images, but its questions hold {sum(tags)} {TAG} tags")
    images = iter([record.image(name) for name in names])
    turns = []
    for human, gpt, count in zip(messages[::2], messages[1::2], tags, strict=False):
        shown = tuple(next(images) for _ in range(count))
        turns.append(Turn(_untagged(human["value"]), gpt["value"].strip(), shown))
    return Conversation(tuple(turns), source=record.source, repairs=repairs)


def _read(record: RawRecord) -> tuple[list[dict[str, Any]], list[str], tuple[str, ...]]:
    """The messages of a record, the names of its pictures, and what is left out of it."""
    messages = record.fields["conversations"]
    roles = [message["from"] for message in messages]
    rounds = len(roles) // 2
    if not rounds or roles != (["human", "gpt"] * (rounds + 1))[: len(roles)]:
        raise record.error(f"expected human and gpt in turn, found {', '.join(roles) or 'no message'}")
    pictures = record.fields.get("image") or []
    names = [pictures] if isinstance(pictures, str) else list(pictures)
    if not names and (key := media_key(record.fields)):
        raise record.error(f"it has no image, but {key}; images belong under the key image")
    return messages, names, (UNANSWERED,) if len(roles) % 2 else ()


def _untagged(text: str) -> str:
    return one_line(text.replace(TAG, "\n"))
