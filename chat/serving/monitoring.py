"""Request ids, a log line for each finished request, and metrics for Prometheus."""

import re
import secrets
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat.serving.errors import ApiError
from chat.serving.responses import cached_tokens, finish_reason
from chat.session import RoundStatistics
from utils.distributed import get_logger

logger = get_logger(__name__)

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
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


class Histogram:
    """Counts of durations in seconds, as Prometheus wants them: each bucket holds those that are shorter too."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> list[str]:
        total, lines = 0, []
        for most, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{most}"}} {total}')
        return [*lines, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """Counts since the server started; only its event loop touches them."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._endings: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._durations = Histogram()
        self._first_pieces = Histogram()

    def add(self, route: str, status: int, account: Account) -> None:
        """A request that is over; `route` is the server's name of it, not what the client wrote."""
        self._requests[route, status] += 1
        if account.seconds_to_first_piece is not None:
            self._first_pieces.add(account.seconds_to_first_piece)
        if (answer := account.statistics) is not None:
            self._durations.add(time.perf_counter() - account.started)
            self._endings[finish_reason(answer)] += 1
            self._sums["prompt_tokens"] += answer.prompt_tokens
            self._sums["cached_prompt_tokens"] += cached_tokens(answer)
            self._sums["generated_tokens"] += answer.generated_tokens
            self._sums["images"] += account.images

    def text(self, load: Mapping[str, int]) -> str:
        """Prometheus's text format; `load` are numbers of requests that are in the house now."""
        lines: list[str] = []

        def say(name: str, kind: str, what: str, values: Mapping[str, float] | Histogram) -> None:
            """`values` by their labels."""
            name = f"visualchat_{name}"
            lines.extend([f"# HELP {name} {what}", f"# TYPE {name} {kind}"])
            if isinstance(values, Histogram):
                lines.extend(values.lines(name))
            else:
                lines.extend(f"{name}{labels} {value}" for labels, value in values.items())

        requests = {
            f'{{route="{route}",status="{status}"}}': count
            for (route, status), count in sorted(self._requests.items())
        }
        say(
            "requests_total", "counter", "Requests by route and HTTP status (499: the client left).", requests
        )
        endings = {f'{{finish_reason="{each}"}}': self._endings[each] for each in ("stop", "length")}
        say("answers_total", "counter", "Finished answers by finish reason.", endings)
        for name, what in _SUMS.items():
            say(f"{name}_total", "counter", what, {"": self._sums[name]})
        until = "Time from a request's arrival to the"
        say("answer_seconds", "histogram", f"{until} end of its answer.", self._durations)
        say("first_piece_seconds", "histogram", f"{until} first piece of its answer.", self._first_pieces)
        for name, count in load.items():
            say(f"{name}_now", "gauge", _LOAD[name], {"": count})
        return "\n".join(lines) + "\n"


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
