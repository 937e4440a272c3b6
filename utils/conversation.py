"""The one shape of a dialogue that data, template, chat and evaluation share.

A conversation is a sequence of turns; a turn is a question, its answer and the images that are new in it.
Images open lazily, so a conversation is cheap to build, to send to a loader worker and to count.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from utils.images import EncodedPicture, ImageError, Source, read_picture, read_pixels, read_size, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class ConversationError(ValueError):
    """A conversation that cannot be used as it is; the message names its record and what is wrong."""


@dataclass(frozen=True)
class Image:
    """A picture that is read when `open` is called, not before.

    `source` is a file's path, the encoded bytes of a file, something that reads them when asked
    (`EncodedPicture`), or a PIL image; `name` is what messages call it.
    """

    source: Source
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.source, str | Path | bytes | EncodedPicture | PIL.Image.Image):
            raise ImageError(
                f"an image's source is a path, encoded bytes or a PIL image, not {type(self.source).__name__}"
            )
        object.__setattr__(self, "name", shortened(self.name or _name_of(self.source)))

    def __hash__(self) -> int:  # PIL images compare but do not hash
        return hash(self.name)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright; of a file the header alone is read. Raises as `open` does."""
        return read_size(self.source, self.name)

    def open(self) -> PIL.Image.Image:
        """Decode the image: upright (EXIF orientation applied), mode RGB, transparency put on white.

        Raises `ImageError` for a file that is missing, unreadable, truncated or larger than is accepted.
        """
        return read_picture(self.source, self.name)

    def pixels(self, least_side: int) -> tuple[np.ndarray, tuple[int, int]]:
        """RGB pixels [H, W, 3] uint8, and the full width and height; raises as `open` does.

        A JPEG is decoded at a fraction of its size, which is quicker, where no side becomes shorter than
        `least_side` by that.
        """
        return read_pixels(self.source, self.name, least_side)


def _name_of(source: Source) -> str:
    if isinstance(source, bytes):
        return f"<image of {len(source)} bytes>"
    if isinstance(source, PIL.Image.Image):
        return getattr(source, "filename", "") or f"<image of {source.width} x {source.height} pixels>"
    return str(source)


_DIGITS = re.compile("[0-9]+")


@dataclass(frozen=True)
class Turn:
    """A question with the images that are new in it, and its answer (None where it is yet to be given).

    `mentions` are the offsets in the question of the numbers by which it speaks of images ("compare image 1
    with image 2"), where they were written for it and count through the conversation as the template does. `kind`
    is what kind of question its record calls it.
    """

    question: str
    answer: str | None = None
    images: tuple[Image, ...] = ()
    mentions: tuple[int, ...] = field(default=(), compare=False, repr=False)
    kind: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(self.images))

    def behind(self, images: int) -> "Turn":
        """The same turn behind so many more images: the numbers in its question go up by that."""
        text, done, mentions = "", 0, []
        for place in self.mentions:
            number = _DIGITS.match(self.question, place)
            assert number, "mentions are places of numbers"
            text += self.question[done:place]
            mentions.append(len(text))
            text += str(int(number[0]) + images)
            done = number.end()
        return replace(self, question=text + self.question[done:], mentions=tuple(mentions))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Conversation:
    """Turns in order, the record they came from (`source`, for messages) and the system text (None: the
    template's; empty: none at all).

    `repairs` say what an adapter left out or joined to make a conversation of the record.

    Raises `ConversationError` where there is no turn, where a question or an answer is empty or no Unicode, or
    where an answer other than the last is missing. A conversation whose last answer is None is a prompt.
    """

    turns: tuple[Turn, ...]
    source: str = ""
    system: str | None = None
    repairs: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns))
        if not self.turns:
            raise self.error("there is no turn in it")
        for number, turn in enumerate(self.turns, start=1):
            if not turn.question.strip():
                raise self.error(f"the question of turn {number} is empty")
            if turn.answer is None and number < len(self.turns):
                raise self.error(f"turn {number} has no answer; only the last turn may wait for one")
            if turn.answer is not None and not turn.answer.strip():
                raise self.error(f"the answer of turn {number} is empty")
            for text in (turn.question, turn.answer or ""):
                if not _is_unicode(text):
                    raise self.error(
                        f"a text of turn {number} holds half a character (\\ud800 to \\udfff), which no tokenizer"
                        " takes; it was cut in the middle, or decoded wrongly"
                    )

    @cached_property
    def images(self) -> tuple[Image, ...]:
        """All images in the order in which they are introduced."""
        return tuple(image for turn in self.turns for image in turn.images)

    def error(self, message: str) -> ConversationError:
        """An error about this conversation, its record named first."""
        return ConversationError(f"{self.source or 'conversation'}: {message}")

    def until_answer(self, turn: int) -> "Conversation":
        """The prompt that asks for the answer of `turn` (counted from 0): everything before that answer."""
        return replace(self, turns=(*self.turns[:turn], replace(self.turns[turn], answer=None)))

    def messages(self, load_images: bool = True) -> list[dict[str, Any]]:
        """The conversation as transformers' chat templates take it: roles with lists of typed contents.

        With `load_images` each image is opened and handed over (`{"type": "image", "image": PIL image}`);
        without, it is only mentioned (`{"type": "image"}`), which is all that a template reads.
        """
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": [{"type": "text", "text": self.system}]})
        for turn in self.turns:
            pictures = [
                {"type": "image", "image": image.open()} if load_images else {"type": "image"}
                for image in turn.images
            ]
            messages.append({"role": "user", "content": [*pictures, {"type": "text", "text": turn.question}]})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return messages


def join(conversations: Sequence[Conversation]) -> Conversation:
    """One conversation of the turns of all, in order; the system text must be the same.

    Where a question speaks of its images by numbers that were written for it, they count on.
    """
    first, *others = conversations
    if not others:
        return first
    if any(other.system != first.system for other in others):
        raise first.error("it cannot be joined with conversations of another system text")
    turns: list[Turn] = []
    images = 0
    for conversation in conversations:
        turns += [turn.behind(images) for turn in conversation.turns]
        images += len(conversation.images)
    return Conversation(
        turns=tuple(turns),
        source=" + ".join(conversation.source for conversation in conversations),
        system=first.system,
    )


def longest_dialogue(config: "PreTrainedConfig", max_seq_len: int) -> int:
    """How many tokens a dialogue may have: `max_seq_len`, or the decoder's positions where they are fewer.

    config: the decoder's, or that of a model that holds it. Rotations that are stretched by a factor (linear,
    dynamic, YaRN) reach so many times farther than the positions that they were trained with.
    """
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not positions:
        return max_seq_len
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in rope.values() if isinstance(each, dict)] or [rope]  # one for each kind of layer
    stretched = [
        int((each.get("original_max_position_embeddings") or positions) * (each.get("factor") or 1))
        for each in kinds
    ]
    return min(max_seq_len, max(positions, *stretched))
