"""What stands before every route: the key, and the name by which the server is called."""

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from chat.serving.errors import ApiError, invalid
from chat.serving.monitoring import Account

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")

_OPEN = ("/health", "/docs", "/openapi.json")
"""Routes that need no key: they tell no secrets, and those who ask, orchestrators and browsers, can bring none."""


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
