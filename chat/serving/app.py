"""The server's routes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from chat.serving.desk import Desk, Serving
from chat.serving.errors import ApiError
from chat.serving.guard import Guard
from chat.serving.responses import model, models
from chat.session import ChatSession


def build_app(session: ChatSession, serving: Serving) -> FastAPI:
    """The application: the model, the images and the lengths that it allows are those of `session`."""
    desk = Desk(session, serving)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(desk.close)

    # Without the pages of documentation: they load scripts from other servers.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    started = int(time.time())

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **desk.load()}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return models(serving.name, started)

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        desk.check_model(name)
        return model(serving.name, started)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        return await desk.complete(request)

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def nobody_there(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        mistake = ApiError(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}")
        return JSONResponse(mistake.body, mistake.status, error.headers)

    @app.exception_handler(Exception)
    async def failure(_: Request, error: Exception) -> Response:
        mistake = ApiError(500, "the server failed; its log says why", "server_error")
        return JSONResponse(mistake.body, mistake.status)

    app.add_middleware(Guard, key=serving.key, hosts=serving.hosts)
    return app
