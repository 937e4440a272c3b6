"""A picture's encoded bytes from the forms in which annotation files carry them."""

import base64
import binascii
import re
from typing import Any

_DATA_URL = re.compile(r"data:[^,]{0,100},")
_URL_SAFE = str.maketrans("-_", "+/")


def encoded_picture(value: Any) -> bytes:
    """The bytes of a picture file, not decoded further.

    Args:
        value: base64 text, in the usual or the URL-safe alphabet, with or without padding, line breaks or a
            data URL's beginning (`data:image/jpeg;base64,`); the bytes themselves; or the object
            `{"bytes": ...}` in which `datasets` keeps pictures.

    Raises `ValueError` with the reason where it is none of these.
    """
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        picture = value
    elif isinstance(value, str):
        picture = _from_base64(value)
    else:
        raise ValueError(f"it is {_KINDS.get(type(value), type(value).__name__)}, not base64 text")
    if not picture:
        raise ValueError("it is empty")
    return picture


_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}


def _from_base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = _DATA_URL.sub("", text, count=1)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        pass  # the rarer forms, at some cost
    compact = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"it is not valid base64 ({error})") from error
