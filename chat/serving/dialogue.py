"""From a request's messages to a dialogue: the turns that are over, and the question to answer."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from chat.answers import recordable
from chat.opened_images import OpenedImage
from chat.serving.errors import invalid
from chat.serving.schema import ImagePart, Message
from utils.conversation import Turn


@dataclass(frozen=True)
class Dialogue:
    """What a request asks. Its images are opened; each of its `turns` has an answer."""

    turns: tuple[Turn, ...]
    question: str
    images: tuple[OpenedImage, ...]  # those that are new with the question
    system: str | None


def turns_known_as(turns: tuple[Turn, ...]) -> tuple[tuple[str, ...], ...]:
    """Of each turn its question, its answer and its images' digests."""
    return tuple((turn.question, turn.answer, *(image.digest for image in turn.images)) for turn in turns)


def read_dialogue(
    messages: list[Message],
    tokenizer: PreTrainedTokenizerBase,
    open_picture: Callable[[str, str], OpenedImage],
    *,
    max_images: int,
    max_characters: int,
) -> Dialogue:
    """Read the messages; `open_picture` gets an image's URL and its place in the request.

    User messages that follow each other are one question. The images of a question stand before its text, in
    their order. Raises `ApiError` (400) for messages that are no dialogue, or too much of one.
    """
    _refuse_disorder(messages)
    _refuse_surplus(messages, max_images, max_characters)
    system: str | None = None
    turns: list[Turn] = []
    texts: list[str] = []
    images: list[OpenedImage] = []
    for number, message in enumerate(messages):
        if message.role in ("system", "developer"):
            system = message.text
        elif message.role == "user":
            texts.append(message.text)
            images += [
                open_picture(part.image_url.url, f"messages[{number}].content[{place}].image_url.url")
                for place, part in enumerate(message.content)
                if isinstance(part, ImagePart)
            ]
        else:
            turns.append(Turn(_joined(texts), recordable(message.text, tokenizer), tuple(images)))
            texts, images = [], []
    return Dialogue(tuple(turns), _joined(texts), tuple(images), system)


def _joined(texts: list[str]) -> str:
    return "\n".join(text for text in texts if text)


def _refuse_disorder(messages: list[Message]) -> None:
    before = None
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if message.role in ("system", "developer"):
            if number:
                raise invalid(f"{place}: a system message stands first or not at all", place)
        elif message.role == "assistant":
            if before != "user":
                raise invalid(f"{place}: an assistant's message must follow a user's", place)
            if any(isinstance(part, ImagePart) for part in message.content):
                raise invalid(f"{place}: images belong in a user's message", place)
        before = message.role
    if before != "user":
        raise invalid("the last message must be a user's", f"messages[{len(messages) - 1}]")
    if any(isinstance(part, ImagePart) for part in messages[0].content) and messages[0].role != "user":
        raise invalid("messages[0]: images belong in a user's message", "messages[0]")


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
