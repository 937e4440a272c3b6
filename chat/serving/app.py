"""The server's routes, and what stands around them."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from inspect import signature
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from chat.serving.documentation import COMPLETION, NOT_FOUND, describe, page
from chat.serving.errors import ApiError, invalid
from chat.serving.monitoring import Account, Metrics, Monitor
from chat.serving.responses import Model, ModelList, model, models
from chat.serving.service import CompletionService, Serving
from chat.session import ChatSession

_METRICS = "text/plain; version=0.0.4; charset=utf-8"

_NEWER = "allow_private_network" in signature(CORSMiddleware).parameters
_PRIVATE_NETWORK = {"allow_private_network": True} if _NEWER else {}
"""Pages of the internet may ask a server on the visitor's own machine; an older Starlette never forbids it."""

_OPEN = ("/health", "/docs", "/openapi.json")
"""Routes that need no key: they tell no secrets, and those who ask, orchestrators and browsers, can bring none."""


def build_app(session: ChatSession, serving: Serving) -> FastAPI:
    """The application: the model, the images and the lengths that it allows are those of `session`."""
    service = CompletionService(session, serving)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title=f"VisualChat: {serving.name}",
        description="Chat completions with images, as OpenAI's clients ask for them.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from other servers
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    started = int(time.time())
    schema: dict[str, Any] = {}

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Whether the server is up, and how busy it is; needs no key")
    async def health() -> dict[str, str | int]:
        return {"status": "ok", **service.load()}

    @app.get("/metrics", summary="counts for Prometheus", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        return Response(metrics.text(service.load()), headers={"Content-Type": _METRICS})

    @app.get("/v1/models", summary="A list with the one model")
    async def list_models() -> ModelList:
        return models(serving.name, started)

    @app.get("/v1/models/{name:path}", summary="the model", responses=NOT_FOUND)
    async def show_model(name: str) -> Model:
        service.check_model(name)
        return model(serving.name, started)

    @app.post("/v1/chat/completions", summary="An answer, whole or as a stream", **COMPLETION)
    async def complete(request: Request) -> Response:
        return await service.complete(request)

    @app.get("/openapi.json", include_in_schema=False)
    async def show_schema() -> Response:
        return JSONResponse(schema)

    @app.get("/docs", include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(page(schema))

    schema.update(describe(app))

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        Account.of(request.scope).mistake = error.message
        return error.response

    @app.exception_handler(ClientDisconnect)
    async def nobody_there(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        asked = f"{request.method} {request.url.path[:100]}"
        where = "; see /docs for the routes" if error.status_code == 404 else ""
        response = ApiError(error.status_code, f"{asked}: {error.detail}{where}").response
        response.headers.update(error.headers or {})
        return response

    # The last one stands outermost: what a browser asks beforehand needs no key, and errors are readable to pages.
    app.add_middleware(Guard, key=serving.key, hosts=serving.hosts)
    if serving.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=serving.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
            **_PRIVATE_NETWORK,
        )
    app.add_middleware(Monitor, metrics=metrics)
    return app


class Guard:
    """Lets requests through that bring the `key` (None: none is needed) and call one of the `hosts` (None: any).

    The second is for servers on the loopback address: a web page elsewhere could give its own name that
    address, and have the visitor's browser ask us questions.
    """

    def __init__(self, app: ASGIApp, key: str | None, hosts: Sequence[str] | None) -> None:
        self._app = app
        self._key = None if key is None else key.encode()
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._mistake(Headers(scope=scope), scope["path"])):
            Account.of(scope).mistake = error.message
            await error.response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _mistake(self, headers: Headers, path: str) -> ApiError | None:
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            return invalid("the server does not go by this host name", code="unknown_host")
        if self._key is None or path in _OPEN:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key):
            return None
        return ApiError(401, "a key is needed: Authorization: Bearer KEY", "invalid_api_key")


def _host(value: str) -> str:
    """Without the port; an IPv6 address stands in brackets."""
    name = value.rpartition(":")[0] if ":" in value and not value.endswith("]") else value
    return name.lower()
