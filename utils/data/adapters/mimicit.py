"""MIMIC-IT: instructions about several pictures (Li et al. 2023, https://arxiv.org/abs/2306.05425).

The file is one object, `{"data": {id: record}}`. Two records, invented here in the published shape::

    {"id": "CGD_0000007", "instruction": "What do both have in common?", "answer": "A wooden bench.",
     "image_ids": ["CGD_IMG_000000000042", "CGD_IMG_000000000077"], "rel_ins_ids": ["CGD_0000008"]}
    {"id": "CGD_0000008", "instruction": "Which one is darker?", "answer": "The second one.",
     "image_ids": ["CGD_IMG_000000000042", "CGD_IMG_000000000077"], "rel_ins_ids": []}

The two are related and show the same pictures, so they become one conversation, all pictures in its first
turn, the rounds in an order that is drawn::

    Turn("Which one is darker?", "The second one.", (Image("coco/train2017/000000000042.jpg"),
                                                     Image("coco/train2017/000000000077.jpg")))
    Turn("What do both have in common?", "A wooden bench.")

The pictures of CGD are COCO's: eight characters stand before the name. Those of SD, SN, TVC and VST are in an
image store, by the ids as they are; ids that it lacks are left out.

llava_otter_blend: LLaVA's dialogues about single pictures, then MIMIC-IT's questions about both of a pair
(Yao et al. 2023, https://arxiv.org/abs/2309.14327, section 4.2).

It reads LLaVA's and CGD's files. From the two instructions above, a record of LLaVA (shown in `llava`) about picture
42 ("What is the dog doing?") and one about picture 77 ("Which sport is this?"), this may come::

    Turn("What is the dog doing?", "It sleeps on a red sofa.", (Image("coco/train2017/000000000042.jpg"),))
    Turn("Is it alone?", "No, a cat lies beside it.")
    Turn("Which one is darker?", "The second one.", (Image("coco/train2017/000000000077.jpg"),))

Drawn anew in every epoch are: for each picture but the last, at least one of LLaVA's conversations about it; for
the last any number of them, none too, as here; at least one of the pair's rounds. A picture comes with the
first turn that needs it. The order of the pictures must be the pair's, since answers speak of the first and
the second; so every picture but the last needs a conversation of LLaVA's that introduces it, and pairs
without one are left out.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from utils.conversation import Conversation, Image, Turn
from utils.data.adapters.cleaning import TAG, one_line
from utils.data.adapters.llava import llava_dial
from utils.data.spec import FORMAT_ERRORS, Arrangement, LeftOut, RawRecord

_CGD_PREFIX = len("CGD_IMG_")


def related_instructions(files: Sequence[Sequence[dict[str, Any]]]) -> Arrangement:
    """Which instructions share a conversation: those with the same pictures in the same order that are related.

    A relation counts whichever of the two states it, and reaches on from there, in circles too; ids that name
    no record, and relations between different pictures, are passed over.
    """
    ids: dict[str, int] = {}
    pictures: list[tuple[str, ...] | None] = []
    relations: list[list[str]] = []
    for fields in (each for file in files for each in file):
        if isinstance(fields, dict):
            ids.setdefault(str(fields.get("id")), len(pictures))
            pictures.append(_pictures(fields))
            relations.append(_relations(fields))
        else:
            pictures.append(None)
            relations.append([])

    leader = list(range(len(pictures)))  # of every record, some earlier one of its conversation, or itself

    def first(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for index, related in enumerate(relations):
        for other in (ids[name] for name in related if name in ids):
            if pictures[index] is not None and pictures[index] == pictures[other]:
                low, high = sorted((first(index), first(other)))
                leader[high] = low

    groups: dict[int, list[int]] = {}
    for index in range(len(pictures)):
        groups.setdefault(first(index), []).append(index)
    return Arrangement.of(list(groups.values()))


def otter_mimicit_cgd(record: RawRecord) -> Conversation:
    """An instruction about two pictures of COCO, with those related to it."""
    names = cgd_image_names(record)
    return _conversation(record, [record.image(name) for name in names])


def otter_mimicit(record: RawRecord) -> Conversation | LeftOut:
    """An instruction about pictures of a store, with those related to it."""
    images = [record.image(name) for name in stored_image_ids(record) if record.has_image(name)]
    if not images:
        return LeftOut("none of its images is in the image store")
    return _conversation(record, images)


def stored_image_ids(record: RawRecord) -> list[str]:
    """The pictures of a record by their ids, whether the store has them or not."""
    return _image_ids(record)


def cgd_image_names(record: RawRecord) -> list[str]:
    """COCO's file names of a record's pictures."""
    ids = _image_ids(record)
    short = [name for name in ids if len(name) <= _CGD_PREFIX]
    if short:
        raise record.error(f"image id {short[0]!r} is no COCO name after {_CGD_PREFIX} characters")
    return [f"{name[_CGD_PREFIX:]}.jpg" for name in ids]


def rounds(record: RawRecord) -> list[Turn]:
    """The questions and answers of a record and of those related to it, in an order that is drawn."""
    turns = [_turn(each) for each in (record, *record.related)]
    return [turns[number] for number in record.rng.permutation(len(turns))]


def _conversation(record: RawRecord, images: Sequence[Image]) -> Conversation:
    opening, *others = rounds(record)
    source = " + ".join(each.source for each in (record, *record.related))
    return Conversation((Turn(opening.question, opening.answer, tuple(images)), *others), source)


def _turn(record: RawRecord) -> Turn:
    question, answer = record.fields["instruction"], record.fields["answer"]
    return Turn(one_line(question.replace(TAG, "\n")), answer.strip())  # the pictures stand before it


def _image_ids(record: RawRecord) -> list[str]:
    names = record.fields["image_ids"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise record.error(f"expected a list of image ids, found {names!r:.80}")
    return names


def _pictures(fields: dict[str, Any]) -> tuple[str, ...] | None:
    """The pictures of a record that can be joined with others; None where it cannot be used by itself, so
    that it does not spoil them.
    """
    names = fields.get("image_ids")
    texts = [fields.get("instruction"), fields.get("answer")]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names) if all(isinstance(text, str) and text.strip() for text in texts) else None


def _relations(fields: dict[str, Any]) -> list[str]:
    related = fields.get("rel_ins_ids")
    return [name for name in related if isinstance(name, str)] if isinstance(related, list) else []


_Option = TypeVar("_Option")

_LEFT_OUT = "an image before the last has no conversation of LLaVA's"


def pairs_with_partners(files: Sequence[Sequence[dict[str, Any]]]) -> Arrangement:
    """CGD's conversations (the first file), each with all of LLaVA's (the other files) about its pictures.

    LLaVA's that cannot be read, or that show no picture or several, lend nothing.
    """
    instructions, *dialogues = files
    pairs = related_instructions([instructions])
    names = [_pair(fields) for fields in instructions]
    partners: dict[str, list[int]] = {}
    for index, fields in enumerate(chain.from_iterable(dialogues), start=len(instructions)):
        shown = _shown(fields)
        if shown is not None:
            partners.setdefault(shown, []).append(index)

    groups, own = [], []
    for number in range(len(pairs)):
        members = pairs[number].tolist()
        shown = dict.fromkeys(names[members[0]])  # each picture once, in order
        groups.append([*members, *(index for name in shown for index in partners.get(name, []))])
        own.append(len(members))
    return Arrangement.of(groups, own)


def llava_otter_blend(record: RawRecord) -> Conversation | LeftOut:
    """LLaVA's conversations about the pictures of a pair, one picture after the other, then the pair's rounds."""
    images = [record.image(name) for name in cgd_image_names(record)]
    instructions = tuple(each for each in record.related if each.file == record.file)
    dialogues = [llava_dial(each) for each in record.related if each.file != record.file]
    about = [[each for each in dialogues if each.images == (image,)] for image in images]
    if not all(about[:-1]):
        return LeftOut(_LEFT_OUT)

    turns: list[Turn] = []
    sources = [record.source]
    introduced = 0
    for number, found in enumerate(about, start=1):
        for dialogue in _draw(found, 1 if number < len(images) else 0, record.rng):
            sources.append(dialogue.source)
            for turn in dialogue.turns:
                is_new = bool(turn.images) and introduced < number
                introduced = number if is_new else introduced
                turns.append(turn if is_new else replace(turn, images=()))
    first, *others = _draw(rounds(replace(record, related=instructions)), 1, record.rng)
    turns += [replace(first, images=tuple(images[introduced:])), *others]
    return Conversation(tuple(turns), " + ".join(sources))


def _draw(options: Sequence[_Option], least: int, rng: np.random.Generator) -> list[_Option]:
    """At least so many of the options, every number as likely as any other, in an order that is drawn."""
    count = int(rng.integers(least, len(options), endpoint=True))
    return [options[number] for number in rng.permutation(len(options))[:count]]


def _shown(fields: dict[str, Any]) -> str | None:
    """The one picture that a record of LLaVA's shows; None where that is not so, or it cannot be read."""
    try:
        images = llava_dial(RawRecord(fields, "", (Path(),))).images
    except FORMAT_ERRORS:
        return None
    return images[0].name if len(images) == 1 else None


def _pair(fields: dict[str, Any]) -> list[str]:
    """The pictures of an instruction, none where it cannot be read."""
    try:
        return cgd_image_names(RawRecord(fields, "", ()))
    except FORMAT_ERRORS:
        return []
