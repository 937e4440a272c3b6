"""The body of a chat completion request: OpenAI's fields, and two of ours (top_k, repetition_penalty).

Its messages become a dialogue: the turns that are over, and the question to answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from chat.generation.decoding import recordable
from chat.images import LoadedImage
from chat.server_setup import JSON_VALUES, Limits
from chat.serving.errors import ApiError, invalid
from utils.commands import printable
from utils.conversation import Turn

_TOLERANT = ConfigDict(strict=True, extra="ignore")


class TextPart(BaseModel):
    model_config = _TOLERANT
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    model_config = _TOLERANT
    url: str


def _url(image: Any) -> Any:
    return {"url": image} if isinstance(image, str) else image


class ImagePart(BaseModel):
    model_config = _TOLERANT
    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_url, json_schema_input_type=ImageUrl | str)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _parts(content: Any) -> Any:
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(BaseModel):
    """A message; its content comes as a text or as a list of parts, and is a list here."""

    model_config = _TOLERANT
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Part],
        BeforeValidator(_parts, json_schema_input_type=str | list[Part] | None),
        Field(max_length=256),
    ]

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def has_images(self) -> bool:
        return any(isinstance(part, ImagePart) for part in self.content)


class StreamOptions(BaseModel):
    model_config = _TOLERANT
    include_usage: bool = False


def _stops(stop: Any) -> Any:
    """As a list; an empty text stops nothing."""
    stops = stop if isinstance(stop, list) else [stop]
    return [each for each in stops if each is not None and each != ""]


Stop = Annotated[str, Field(max_length=100)]


class CompletionRequest(BaseModel):
    """What is asked for. Other fields are kept as they are, for `ignored_fields` to judge."""

    model_config = ConfigDict(strict=True, extra="allow")
    messages: list[Message] = Field(
        min_length=1, description="the dialogue so far, the question to answer last; images as data URLs"
    )
    model: str | None = Field(None, description="any name: there is one model")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="maximum number of tokens of the answer; capped at the server's limit",
    )
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="newer name of max_tokens; takes precedence"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0: greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="sample from the most likely tokens whose probabilities sum to this"
    )
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = Field(
        None, description="sample from this many most likely tokens; 0 and -1: all"
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="above 1: fewer repetitions"
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        None, description="the same seed and request give the same answer; random if not set"
    )
    stop: Annotated[list[Stop], BeforeValidator(_stops, json_schema_input_type=str | list[Stop] | None)] = (
        Field([], max_length=4, description="texts at which the answer ends; they are not part of it")
    )
    stream: bool | None = Field(None, description="the answer in pieces, as server-sent events")
    stream_options: StreamOptions | None = Field(
        None, description="include_usage: adds a last event with the token counts"
    )

    @property
    def answer_tokens(self) -> int | None:
        """The length asked for."""
        return self.max_completion_tokens or self.max_tokens


def read_request(body: bytes, limits: Limits) -> CompletionRequest:
    """Raises `ApiError` (400) that names the first part of the body that is wrong."""
    if sum(map(body.count, (b",", b"[", b"{"))) > JSON_VALUES:
        raise invalid(f"the body has more than {JSON_VALUES:,} values; send less", code="too_large")
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _first_mistake(error) from None
    if len(request.messages) > limits.messages:
        raise invalid(
            f"{len(request.messages)} messages, more than the {limits.messages} allowed", "messages"
        )
    return request


def _first_mistake(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return invalid(
            f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    place = ""
    for before, part in zip((None, *first["loc"]), first["loc"], strict=False):
        if isinstance(part, int):
            place += f"[{part}]"
        elif not (isinstance(before, int) and part in ("text", "image_url")):  # which kind of part it was
            place += f".{part}" if place else part
    return invalid(f"{place or 'the body'}: {printable(first['msg'], 300)}", place or None)


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
    open_image: Callable[[str, str], LoadedImage],
    *,
    max_images: int,
    max_characters: int,
) -> Dialogue:
    """Read the messages; `open_image` gets an image's URL and its place in the request.

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
                open_image(part.image_url.url, f"messages[{number}].content[{place}].image_url.url")
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
