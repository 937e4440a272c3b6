"""Encoded image bytes from the forms in data files and requests: raw bytes, base64, data URLs.

Training data, image stores, saved dialogues, evaluation and the server use it, so they accept the same.
"""

import base64
import re
from typing import Any
from urllib.parse import unquote

_DATA_URL = re.compile(r"data:([^,]{0,200}),", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")
_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}

_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+=*\s*")
_SHORTEST_IMAGE = 32  # characters of base64: no format has a smaller header
_SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0\0\0\0|II\*\0|MM\0\*|.{4}ftyp", re.DOTALL
)
"""How files begin: JPEG, PNG, GIF, WebP, BMP, TIFF of both byte orders, AVIF and HEIF."""


def image_bytes(value: Any) -> bytes:
    """The bytes of an image's file; whether they are an image is not looked at.

    Args:
        value: base64 text, in the usual or the URL-safe alphabet, with or without padding, line breaks or a
            data URL's beginning (`data:image/jpeg;base64,`); the bytes themselves; or the object
            `{"bytes": ...}` in which `datasets` keeps images.

    Raises `ValueError` with the reason where it is none of these.
    """
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        encoded = value
    elif isinstance(value, str):
        encoded = _decoded(value)
    else:
        raise ValueError(f"it is {_KINDS.get(type(value), type(value).__name__)}, not base64 text")
    if not encoded:
        raise ValueError("it is empty")
    return encoded


def is_image_text(text: str) -> bool:
    """Whether a text that may also be a path is an image itself: a data URL, or base64 of an image's file."""
    if is_data_url(text):
        return True
    if len(text) < _SHORTEST_IMAGE or not _BASE64.fullmatch(text):
        return False
    beginning = "".join(text[:64].split())[:24].rstrip("=")
    return _SIGNATURES.match(_decoded(beginning[: len(beginning) // 4 * 4])) is not None


def is_data_url(text: str) -> bool:
    """Whether a text is a data URL (RFC 2397), whatever it carries."""
    return text[:5].lower() == "data:"


def shortened(text: str, most: int = 300) -> str:
    """A text that a message quotes, its middle left out where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    part = most // 3
    return f"{text[:part]}...({len(text):,} characters)...{text[-part:]}"


def _decoded(text: str) -> bytes:
    if is_data_url(text):
        url = _DATA_URL.match(text)
        if url is None or not url[1].rstrip().lower().endswith(";base64"):
            raise ValueError("it is not base64: a data URL of an image starts data:image/png;base64,")
        text = text[url.end() :]
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        pass  # the rarer forms, at some cost
    text = unquote(text) if "%" in text else text
    compact = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"it is not valid base64 ({error})") from error
