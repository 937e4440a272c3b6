"""Request ids, a log line for each finished request, and metrics for Prometheus."""

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat.serving.errors import ApiError
from chat.serving.responses import cached_tokens, finish_reason
from chat.session import RoundStatistics
from utils.distributed import get_logger

logger = get_logger(__name__)

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
disable_created_metrics()  # a time beside each count, which nobody asks for

_UNSEEN = ("/health", "/metrics")
"""Routes that other programs ask every few seconds: a line in the log where they fail, and no other."""


@dataclass
class Account:
    """What the parts of the server that see a request know of it."""

    started: float = field(default_factory=time.perf_counter)
    images: int = 0
    ignored: tuple[str, ...] = ()  # fields of the request
    seconds_to_first_piece: float | None = None
    statistics: RoundStatistics | None = None  # of an answer that came to its end
    mistake: str | None = None

    def note_piece(self) -> None:
        """A piece of the answer has come."""
        if self.seconds_to_first_piece is None:
            self.seconds_to_first_piece = time.perf_counter() - self.started

    @staticmethod
    def of(scope: Scope) -> "Account":
        """The account of the request whose ASGI scope this is."""
        return scope.setdefault("state", {}).setdefault("account", Account())


class Metrics:
    """Counts since the server started."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        about = "Requests by route and HTTP status (499: the client left)."
        self._requests = Counter("visualchat_requests", about, ["route", "status"], registry=registry)
        about = "Finished answers by finish reason."
        self._answers = Counter("visualchat_answers", about, ["finish_reason"], registry=registry)
        for reason in ("stop", "length"):
            self._answers.labels(reason)  # listed with 0 before it occurs
        self._durations, self._first_pieces = (
            Histogram(
                f"visualchat_{name}_seconds",
                f"Time from a request's arrival to the {what}.",
                buckets=_SECONDS,
                registry=registry,
            )
            for name, what in (("answer", "end of its answer"), ("first_piece", "first piece of its answer"))
        )
        self._sums = {
            name: Counter(f"visualchat_{name}", what, registry=registry) for name, what in _SUMS.items()
        }
        self._load = {
            name: Gauge(f"visualchat_{name}_now", what, registry=registry) for name, what in _LOAD.items()
        }

    def add(self, route: str, status: int, account: Account) -> None:
        """A request that is over; `route` is the server's name of it, not what the client wrote."""
        self._requests.labels(route, status).inc()
        if account.seconds_to_first_piece is not None:
            self._first_pieces.observe(account.seconds_to_first_piece)
        if (answer := account.statistics) is not None:
            self._durations.observe(time.perf_counter() - account.started)
            self._answers.labels(finish_reason(answer)).inc()
            self._sums["prompt_tokens"].inc(answer.prompt_tokens)
            self._sums["cached_prompt_tokens"].inc(cached_tokens(answer))
            self._sums["generated_tokens"].inc(answer.generated_tokens)
            self._sums["images"].inc(account.images)

    def text(self, load: Mapping[str, int]) -> bytes:
        """Prometheus's text format; `load` are numbers of requests that are in the house now."""
        for name, count in load.items():
            self._load[name].set(count)
        return generate_latest(self._registry)


_SUMS = {
    "prompt_tokens": "Prompt tokens of finished answers, image tokens included.",
    "cached_prompt_tokens": "Prompt tokens that were in the cache from an earlier request.",
    "generated_tokens": "Generated tokens of finished answers.",
    "images": "Images in the dialogues of finished answers.",
}
_LOAD = {
    "answering": "Requests being answered now.",
    "waiting": "Requests waiting for a slot now.",
    "requests": "All completion requests now, including those still being received.",
}


class Monitor:
    """Stands around the whole server: gives each request its id, and tells log and `metrics` when it is over."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        account, request_id = Account.of(scope), _request_id(Headers(scope=scope))
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # a fault of ours; other requests go on
            logger.error("request %s failed", request_id, exc_info=error)
            account.mistake = account.mistake or type(error).__name__
            if status is not None:
                raise  # it is too late to say so: the connection is cut
            failure = ApiError(500, "the server failed; its log says why", "server_error")
            await failure.response(scope, receive, send_with_id)
        finally:
            self._note(scope, account, status or 499, request_id)

    def _note(self, scope: Scope, account: Account, status: int, request_id: str) -> None:
        route = getattr(scope.get("route"), "path", "other")
        if route.endswith("/completions") and status == 200 and account.statistics is None:
            status = 500 if account.mistake else 499  # in the middle of a stream
        self._metrics.add(route, status, account)
        if route not in _UNSEEN or status != 200:
            logger.info(
                "%s %s %d in %.2f s%s [%s]",
                scope["method"],
                _in_one_line(scope["path"])[:100],
                status,
                time.perf_counter() - account.started,
                _said(account, status),
                request_id,
            )


def _said(account: Account, status: int) -> str:
    said = []
    if (answer := account.statistics) is not None:
        cached = cached_tokens(answer)
        said.append(f"images {account.images}, tokens {answer.prompt_tokens} ({cached} cached)")
        said.append(f"answer {answer.generated_tokens} ({finish_reason(answer)})")
    if account.ignored:
        said.append(f"ignored {', '.join(account.ignored)}")
    if account.mistake:
        said.append(_in_one_line(account.mistake)[:300])
    elif status == 499:
        said.append("the client left")
    return ": " * bool(said) + ", ".join(said)


def _in_one_line(text: str) -> str:
    """What clients send may hold anything; a line of the log holds no other lines."""
    return text.encode("unicode_escape").decode()


def _request_id(headers: Headers) -> str:
    """The client's own, where it is fit for a header and a line of the log; else a new one."""
    own = headers.get("x-request-id", "")
    return own if re.fullmatch(r"[\w.:/+=@-]{1,128}", own, re.ASCII) else f"req_{secrets.token_hex(12)}"
