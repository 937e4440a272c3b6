"""The API's description: for programs as an OpenAPI schema, for people as a page that loads nothing from elsewhere."""

from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from chat.serving.errors import ErrorBody
from chat.serving.fields import FIELDS
from chat.serving.responses import ChatCompletion
from chat.serving.schema import CompletionRequest

_REFERENCES = "#/components/schemas/{model}"
_BODY = {"schema": {"$ref": _REFERENCES.format(model="CompletionRequest")}}
_MISTAKES = {
    400: "the request cannot be answered as it is",
    401: "a key is needed",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not sent as JSON",
    429: "too many requests at once",
    500: "the server failed",
}

COMPLETION: dict[str, Any] = {
    "response_model": None,  # it writes its responses itself
    "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": _BODY}}},
    "responses": {
        200: {
            "model": ChatCompletion,
            "description": "the answer; with stream, chat.completion.chunk events and [DONE]",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **{status: {"model": ErrorBody, "description": what} for status, what in _MISTAKES.items()},
    },
}
"""What FastAPI is to know of the route of chat completions."""

NOT_FOUND: dict[int | str, Any] = {
    404: {"model": ErrorBody, "description": "there is no such model"},
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI schema of the app's routes, with the body that chat completions take."""
    described = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    body = CompletionRequest.model_json_schema(ref_template=_REFERENCES)
    schemas = described["components"]["schemas"]
    schemas.update(body.pop("$defs"), CompletionRequest=body)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path in described["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # FastAPI's own: our routes answer with 400
    return described


def page(schema: dict[str, Any]) -> str:
    """The schema as HTML."""
    routes = [
        (f"{method.upper()} {path}", operation.get("summary", ""))
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    body = schema["components"]["schemas"]["CompletionRequest"]
    fields = [(name, field.get("description", "")) for name, field in body["properties"].items()]
    others = [
        (", ".join(name for name, field in FIELDS.items() if field.effect == effect), what)
        for effect, what in _EFFECTS.items()
    ]
    return _PAGE.format(
        title=escape(schema["info"]["title"]),
        description=escape(schema["info"]["description"]),
        routes=_table(routes),
        fields=_table(fields),
        others=_table(others),
        example=escape(_EXAMPLE),
    )


def _table(rows: list[tuple[str, str]]) -> str:
    return "".join(f"<tr><td><code>{escape(name)}</code><td>{escape(what)}" for name, what in rows)


_EFFECTS = {
    "none": "accepted: the answer is the same without them",
    "tunes": "ignored: they only influence the choice of words; the server's log names them",
    "changes": "refused, except for neutral values (n=1, tools=[], logprobs=false)",
}

_EXAMPLE = """curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{
  "messages": [{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
    {"type": "text", "text": "What is in the image?"}]}],
  "max_tokens": 100
}'"""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
td {{ padding: .2rem 1rem .2rem 0; vertical-align: top }} pre {{ background: #eee; padding: 1rem; overflow: auto }}
</style>
<h1>{title}</h1>
<p>{description} The same for programs: <a href="openapi.json">openapi.json</a>.
<h2>Routes</h2><table>{routes}</table>
<h2>Fields of a chat completion request</h2><table>{fields}</table>
<h2>Other fields</h2><table>{others}</table>
<h2>Example</h2><pre>{example}</pre>
</html>
"""
