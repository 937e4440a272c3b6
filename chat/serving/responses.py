"""What the server says: completions, their chunks and the list of models, in OpenAI's shapes."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from typing_extensions import TypedDict

from chat.session import RoundStatistics


class PromptDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    """What an answer took; `cached_tokens` of the prompt had been computed for an earlier request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class AnswerMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(TypedDict):
    index: int
    message: AnswerMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(TypedDict):
    """An answer that is sent whole."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


def cached_tokens(statistics: RoundStatistics) -> int:
    """Tokens of the prompt that had been computed for an earlier request."""
    uncomputed = 0 if statistics.end == "eos" else 1  # the last token: nothing follows from it
    tokens = statistics.prompt_tokens + statistics.generated_tokens
    return tokens - uncomputed - statistics.computed_tokens


def usage(statistics: RoundStatistics) -> Usage:
    return {
        "prompt_tokens": statistics.prompt_tokens,
        "completion_tokens": statistics.generated_tokens,
        "total_tokens": statistics.prompt_tokens + statistics.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens(statistics)},
    }


def finish_reason(statistics: RoundStatistics) -> Literal["stop", "length"]:
    return "length" if statistics.end == "length" else "stop"


@dataclass(frozen=True)
class Completion:
    """One answer to one request."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, statistics: RoundStatistics) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason(statistics),
        }
        return self._said("chat.completion", [choice]) | {"usage": usage(statistics)}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(self._said("chat.completion.chunk", [choice]))

    def usage_chunk(self, statistics: RoundStatistics) -> str:
        return event(self._said("chat.completion.chunk", []) | {"usage": usage(statistics)})

    def _said(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def event(body: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body)}\n\n"


DONE = "data: [DONE]\n\n"


def models(name: str, created: int) -> ModelList:
    return {"object": "list", "data": [model(name, created)]}


def model(name: str, created: int) -> Model:
    return {"id": name, "object": "model", "created": created, "owned_by": "visualchat"}
