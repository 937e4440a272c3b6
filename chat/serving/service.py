"""Where completion requests are received, read, handed to the engine, and answered."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from chat.generation.decoding import Sampling
from chat.server_setup import CHARACTERS_PER_TOKEN, Limits
from chat.serving.engine import Engine, Event, GenerationRequest, Job
from chat.serving.errors import ApiError, invalid
from chat.serving.fields import ignored_fields
from chat.serving.images import ImageOpener, Sources
from chat.serving.monitoring import Account
from chat.serving.responses import DONE, Completion, event, finish_reason
from chat.serving.schema import CompletionRequest, read_dialogue, read_request
from chat.session import ChatSession, RoundStatistics
from utils.commands import printable

_READERS = 16
"""Threads that read bodies and images; most of them wait, for the web or for their turn to decode."""

_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies are not to collect it

_DRAINED = 4
"""A body that is too large is read on up to so many times the limit: only then does its sender hear of it."""


@dataclass(frozen=True)
class Serving:
    """How a model is served. `sampling` and `max_new_tokens` hold where a request does not say (each then has a
    seed of its own); `key` None: no key is needed; `hosts` None: the server goes by any name; `origins` of web
    pages that may ask ("*": all); `lenient`: fields that nobody knows are ignored."""

    name: str
    limits: Limits
    sources: Sources
    sampling: Sampling
    max_new_tokens: int
    slots: int = 4  # answers at once; each is a session, which keeps its last dialogue
    key: str | None = None
    hosts: tuple[str, ...] | None = None
    origins: tuple[str, ...] = ()
    lenient: bool = False


class CompletionService:
    """Takes requests, at most as many as there are slots and places in the queue."""

    def __init__(self, session: ChatSession, serving: Serving) -> None:
        self._serving = serving
        self._first = session
        self._places = serving.slots + serving.limits.queue
        self._taken = 0
        self._engine = Engine(session, serving.slots)
        self._images = ImageOpener(serving.limits, serving.sources)
        self._readers = ThreadPoolExecutor(_READERS, "reader")

    def load(self) -> dict[str, int]:
        """How many requests are being answered, and how many are on their way."""
        return {"answering": self._engine.busy, "waiting": self._engine.waiting, "requests": self._taken}

    def close(self) -> None:
        self._engine.close()
        self._readers.shutdown()

    def check_model(self, name: str) -> None:
        """Raises `ApiError` (404) for any model but the one that is served."""
        if name != self._serving.name:
            raise ApiError(
                404,
                f"there is no model {printable(name)}; this server has {self._serving.name}",
                "model_not_found",
                "model",
            )

    async def complete(self, request: Request) -> Response:
        """The answer to a chat completion request, whole or as a stream. Raises `ApiError`."""
        if self._taken >= self._places:
            raise ApiError(
                429, "too many requests at once; try again in a moment", "queue_full", retry_after=1
            )
        self._taken += 1
        account = Account.of(request.scope)
        answer: _Answer | None = None
        streaming = False
        try:
            body = await _body(request, self._serving.limits)
            read = asyncio.get_running_loop().run_in_executor(self._readers, self._read, body, account)
            asked, options = await read
            answer = _Answer(self._engine, asked, request.receive, account)
            completion = Completion(self._serving.name)
            if not options.stream:
                text = "".join([piece async for piece in answer.pieces()])
                return JSONResponse(completion.whole(text, answer.statistics))
            pieces = answer.pieces()
            first = await anext(pieces, "")  # a mistake found now still has a status of its own
            usage = options.stream_options is not None and options.stream_options.include_usage
            chunks = _chunks(completion, first, pieces, answer, usage)
            streaming = True
            return _Stream(chunks, partial(self._leave, answer))
        finally:
            if not streaming:
                self._leave(answer)

    def _leave(self, answer: "_Answer | None") -> None:
        self._taken -= 1
        if answer is not None:
            answer.close()

    def _read(self, body: bytes, account: Account) -> tuple[GenerationRequest, CompletionRequest]:
        limits = self._serving.limits
        request = read_request(body, limits)
        account.ignored = ignored_fields(request.model_extra or {}, self._serving.lenient)
        dialogue = read_dialogue(
            request.messages,
            self._first.processor.tokenizer,
            self._images.open,
            max_images=self._first.max_images,
            max_characters=CHARACTERS_PER_TOKEN * self._first.max_seq_len,
        )
        account.images = len(dialogue.images) + sum(len(turn.images) for turn in dialogue.turns)
        length = min(request.answer_tokens or self._serving.max_new_tokens, limits.max_tokens)
        return GenerationRequest(dialogue, self._sampling(request), length, tuple(request.stop)), request

    def _sampling(self, request: CompletionRequest) -> Sampling:
        """The server's, in which the request's own settings take their places, and a seed."""
        asked = request.model_dump(include={each.name for each in fields(Sampling)}, exclude_none=True)
        if asked.get("top_k") == -1:  # all, as 0
            asked["top_k"] = 0
        return replace(self._serving.sampling, **{"seed": secrets.randbits(63), **asked})


class _Answer:
    """A job's events as they come, for as long as its client is there."""

    def __init__(self, engine: Engine, asked: GenerationRequest, receive: Receive, account: Account) -> None:
        loop = asyncio.get_running_loop()
        self._account = account
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._engine = engine
        self._job = Job(asked, lambda told: loop.call_soon_threadsafe(self._events.put_nowait, told))
        self._gone = asyncio.create_task(_disconnected(receive))
        engine.submit(self._job)

    @property
    def statistics(self) -> RoundStatistics:
        """Known when all pieces have come."""
        assert self._account.statistics is not None
        return self._account.statistics

    async def pieces(self) -> AsyncIterator[str]:
        """The answer's text; then `statistics` are known. Raises `ApiError`, `ClientDisconnect`."""
        while True:
            told = asyncio.ensure_future(self._events.get())
            try:
                await asyncio.wait({told, self._gone}, return_when=asyncio.FIRST_COMPLETED)
                if not told.done():
                    raise ClientDisconnect
            finally:
                told.cancel()  # where it is not done: nobody waits for it any more
            match told.result():
                case str(piece):
                    self._account.note_piece()
                    yield piece
                case ApiError() as error:
                    self._account.mistake = error.message
                    raise error
                case RoundStatistics() as statistics:
                    self._account.statistics = statistics
                    return

    def close(self) -> None:
        """Nothing more is wanted, if it ever came to its end."""
        self._gone.cancel()
        if self._account.statistics is None:
            self._engine.cancel(self._job)


class _Stream(StreamingResponse):
    """Events, and `release` whatever becomes of them: sent, broken off, or never begun."""

    def __init__(self, events: AsyncIterator[str], release: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_STREAM_HEADERS)
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody is there to be told
        finally:
            self._release()


async def _chunks(
    completion: Completion, first: str, pieces: AsyncIterator[str], answer: _Answer, usage: bool
) -> AsyncIterator[str]:
    yield completion.chunk({"role": "assistant", "content": first})
    try:
        async for piece in pieces:
            yield completion.chunk({"content": piece})
    except ApiError as error:
        yield event(error.body)
        return
    yield completion.chunk({}, finish_reason(answer.statistics))
    if usage:
        yield completion.usage_chunk(answer.statistics)
    yield DONE


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, limits: Limits) -> bytes:
    """The request's body. Raises `ApiError` where it is too large (413), too slow (408) or no JSON (415)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        body = await asyncio.wait_for(_collected(request, limits.body_bytes), limits.body_seconds)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"the body did not come within {limits.body_seconds:g} s", "timeout") from error
    if body is None:
        raise ApiError(413, f"the body has more than {limits.body_bytes:,} bytes", "too_large")
    if kind != "application/json":  # a browser may send other kinds to us from any page
        raise ApiError(415, "the body must be JSON, sent as Content-Type: application/json", "not_json")
    if not body:
        raise invalid("the body is empty")
    return body


async def _collected(request: Request, limit: int) -> bytes | None:
    """The body; None where it is larger than `limit`."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        else:
            chunks.clear()
        if size > _DRAINED * limit:
            break
    return b"".join(chunks) if size <= limit else None
