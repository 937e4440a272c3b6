"""How much a request may ask for, and how many there may be."""

from dataclasses import dataclass

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """Sizes are those of one request; an image's pixels are read off its header before it is decoded.
    `queue` requests may wait beside those that are being answered; what comes above that is sent away.
    """

    body_bytes: int = 32 * MEBIBYTE
    body_seconds: float = 60.0
    image_bytes: int = 16 * MEBIBYTE
    image_pixels: int = 25_000_000
    messages: int = 256
    max_tokens: int = 1024
    queue: int = 64


JSON_VALUES = 100_000
"""Commas and brackets in a body, at most: many tiny values would take a hundred times the memory of its bytes."""

MAX_JPEG_SCANS = 64
"""Scans of a progressive JPEG, at most: each is a pass over all pixels, and a small file can hold thousands."""

CHARACTERS_PER_TOKEN = 32
"""A text with more characters than this for each token of the context is refused before it is tokenised."""
