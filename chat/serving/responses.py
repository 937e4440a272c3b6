"""What the server says: completions, their chunks and the list of models, in OpenAI's shapes."""

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from chat.session import RoundStatistics


def usage(statistics: RoundStatistics) -> dict[str, Any]:
    """What an answer took; `cached_tokens` of the prompt had been computed for an earlier request."""
    prompt, answer = statistics.prompt_tokens, statistics.generated_tokens
    uncomputed = 0 if statistics.end == "eos" else 1  # the last token: nothing follows from it
    cached = prompt + answer - uncomputed - statistics.computed_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def finish_reason(statistics: RoundStatistics) -> str:
    return "length" if statistics.end == "length" else "stop"


@dataclass(frozen=True)
class Completion:
    """One answer to one request."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, statistics: RoundStatistics) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
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
            "system_fingerprint": None,
            "choices": choices,
        }


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body)}\n\n"


DONE = "data: [DONE]\n\n"


def models(name: str, created: int) -> dict[str, Any]:
    return {"object": "list", "data": [model(name, created)]}


def model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "visualchat"}
