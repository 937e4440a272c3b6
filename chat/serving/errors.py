"""What goes wrong with a request, as OpenAI's clients expect to be told."""

from dataclasses import dataclass

from starlette.responses import JSONResponse
from typing_extensions import TypedDict


class Error(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """https://platform.openai.com/docs/guides/error-codes"""

    error: Error


@dataclass(eq=False)  # not frozen: Python writes a traceback into it
class ApiError(Exception):
    """An answer other than success: the HTTP `status`, one line for people, and what programs look at.

    `code` is a word for the kind of mistake; `param` is the part of the request that it lies in.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None  # seconds

    @property
    def body(self) -> ErrorBody:
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return JSONResponse(self.body, self.status, headers)


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it is."""
    return ApiError(400, message, code, param)
