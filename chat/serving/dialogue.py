"""From a request's messages to a dialogue: the turns that are over, and the question to answer."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from chat.generation.text_stream import recordable
from chat.loaded_images import LoadedImage
from chat.serving.errors import invalid
from chat.serving.schema import ImagePart, Message
from utils.conversation import Turn


@dataclass(frozen=True)
class Dialogue:
    """What a request asks. Its images are opened; each of its `turns` has an answer."""

    turns: tuple[Turn, ...]
    question: str
    images: tuple[LoadedImage, ...]  # those that are new with the question
    system: str | None


def read_dialogue(
    messages: list[Message],
    tokenizer: PreTrainedTokenizerBase,
    open_picture: Callable[[str, str], LoadedImage],
    *,
    max_images: int,
    max_characters: int,
) -> Dialogue:
    """Read the messages; `open_picture` gets an image's URL and its place in the request.

    Messages of one role that follow each other are one: the texts of the system, a question, an answer. The
    images of a question stand before its text, in their order; where there is no text, they are to be described.
    A greeting, an assistant's message before the first question, is left out: no question led to it.

    Raises `ApiError` (400) for messages that are no dialogue, or too much of one.
    """
    _refuse_disorder(messages)
    _refuse_surplus(messages, max_images, max_characters)
    system: str | None = None
    turns: list[Turn] = []
    question: str | None = None
    images: tuple[LoadedImage, ...] = ()
    for role, run in groupby(enumerate(messages), key=lambda numbered: _role(numbered[1])):
        numbered = list(run)
        text = "\n".join(message.text for _, message in numbered if message.text)
        if role == "system":
            system = text
        elif role == "user":
            images = tuple(
                open_picture(part.image_url.url, f"messages[{number}].content[{place}].image_url.url")
                for number, message in numbered
                for place, part in enumerate(message.content)
                if isinstance(part, ImagePart)
            )
            if not text.strip() and not images:
                place = f"messages[{numbered[-1][0]}]"
                raise invalid(f"{place}: a question needs a text or an image", place)
            question = text if text.strip() else _DESCRIBE[min(len(images), 2)]
        elif question is not None:
            turns.append(Turn(question, recordable(text, tokenizer), images))
    assert question is not None  # the last message is a user's
    return Dialogue(tuple(turns), question, images, system)


_DESCRIBE = {1: "Describe the image.", 2: "Describe the images."}
"""Asked for one image, or several, that came without a word: the model knows no turn without a question."""


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


def _refuse_disorder(messages: list[Message]) -> None:
    roles = [_role(message) for message in messages]
    begun = False
    for number, (role, message) in enumerate(zip(roles, messages, strict=True)):
        place = f"messages[{number}]"
        if role == "system" and begun:
            raise invalid(f"{place}: system messages must come first", place)
        begun = begun or role != "system"
        if role != "user" and message.has_images:
            raise invalid(f"{place}: images belong in a user's message", place)
    if roles[-1] != "user":
        raise invalid("the last message must be a user's", f"messages[{len(messages) - 1}]")


def _refuse_surplus(messages: list[Message], max_images: int, max_characters: int) -> None:
    count = sum(isinstance(part, ImagePart) for message in messages for part in message.content)
    if count > max_images:
        raise invalid(f"{count} images, of {max_images} allowed in a dialogue", "messages", "too_many_images")
    characters = sum(len(message.text) for message in messages)
    if characters > max_characters:
        raise invalid(
            f"{characters:,} characters of text are more than the model's context can hold",
            "messages",
            "context_length_exceeded",
        )
