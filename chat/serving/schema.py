"""The body of a chat completion request: OpenAI's fields, and three of ours (top_k, repetition_penalty)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from chat.serving.errors import ApiError, invalid
from chat.serving.limits import JSON_VALUES, Limits

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that ask for what this server does not do; null and these values ask for nothing."""

IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields that have no bearing on an answer."""

_TOLERANT = ConfigDict(strict=True, extra="ignore")


class TextPart(BaseModel):
    model_config = _TOLERANT
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    model_config = _TOLERANT
    url: str


class ImagePart(BaseModel):
    model_config = _TOLERANT
    type: Literal["image_url"]
    image_url: ImageUrl


def _parts(content: Any) -> Any:
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(BaseModel):
    """A message; its content comes as a text or as a list of parts, and is a list here."""

    model_config = _TOLERANT
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
        BeforeValidator(_parts),
        Field(max_length=256),
    ]

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))


class StreamOptions(BaseModel):
    model_config = _TOLERANT
    include_usage: bool = False


class CompletionRequest(BaseModel):
    """What is asked for. Fields that would change the answer in a way that is not built are refused."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(default=[], max_length=4)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop or []

    @property
    def answer_tokens(self) -> int | None:
        """The length asked for; the newer of the two names goes first."""
        return self.max_completion_tokens or self.max_tokens


def read_request(body: bytes, limits: Limits) -> CompletionRequest:
    """Raises `ApiError` (400) that names the first part of the body that is wrong."""
    if sum(map(body.count, (b",", b"[", b"{"))) > JSON_VALUES:
        raise invalid(f"the body has more than {JSON_VALUES:,} values; send less", code="too_large")
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _first_mistake(error) from None
    for field, value in (request.model_extra or {}).items():
        if field in IGNORED or value is None or _is_one_of(value, NEUTRAL.get(field, ())):
            continue
        known = field in NEUTRAL
        raise invalid(
            f"{field}={shortened(value)} is not supported here"
            if known
            else f"unknown field {shortened(field)}",
            shortened(field),
            "unsupported_parameter" if known else "unknown_parameter",
        )
    if len(request.messages) > limits.messages:
        raise invalid(
            f"{len(request.messages)} messages, more than the {limits.messages} allowed", "messages"
        )
    if (request.answer_tokens or 0) > limits.max_tokens:
        name = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
        raise invalid(
            f"{name} is {request.answer_tokens}, more than the {limits.max_tokens} allowed", name, "too_large"
        )
    return request


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    """True and 1 are equal to Python, but not to JSON."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)


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
    return invalid(f"{place or 'the body'}: {shortened(first['msg'], 300)}", place or None)


def shortened(value: Any, longest: int = 60) -> str:
    """A value that a client sent, fit to be shown."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= longest else text[: longest - 3] + "..."
