"""llava_otter_blend: LLaVA's dialogues about single pictures, then MIMIC-IT's questions about both of a pair
(Yao et al. 2023, https://arxiv.org/abs/2309.14327, section 4.2).

It reads LLaVA's and CGD's files, whose records are shown in `llava` and `mimicit`. From an instruction about
the pictures 42 and 77 of COCO and the one related to it (both as in `mimicit`), a record of LLaVA about picture
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

from utils.conversation import Conversation, Turn
from utils.data.adapters.llava import llava_dial
from utils.data.adapters.mimicit import cgd_image_names, related_instructions, rounds
from utils.data.spec import FORMAT_ERRORS, Arrangement, LeftOut, RawRecord

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
