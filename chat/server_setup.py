"""What page and server start with alike: where they listen, the name of the model, and how much a request may ask."""

from __future__ import annotations

import argparse
import errno
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from utils.commands import UsageError

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

KEY_VARIABLE = "VISUALCHAT_API_KEY"
"""The environment variable that sets a key for the server or the page."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""By which a server there is called."""


def add_address_arguments(parser: argparse.ArgumentParser, port: int) -> None:
    """`--host`, this machine only by default, and `--port`."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    parser.add_argument(
        "--port", type=_port, default=port, help="port to listen on; 0: any free one (default: %(default)s)"
    )


def _port(text: str) -> int:
    """A port's number, as argparse takes it."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: give a number from 0 to 65535")
    return int(text)


class AddressError(UsageError):
    """An address at which this machine cannot listen; the message names it and says what to do."""


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` and `port` (0: any that is free).

    Raises `AddressError` where another program has the port, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        kind = getattr(error, "errno", None)
        if kind == errno.EADDRINUSE:
            mistake = f"--port {port}: another program listens there; stop it, or choose another port"
        elif kind == errno.EACCES:
            mistake = f"--port {port}: only an administrator may listen there; choose one above 1023"
        else:
            mistake = f"--host {host}: it is not an address of this machine"
        raise AddressError(mistake) from error


def model_name(checkpoint: str) -> str:
    """What to call a checkpoint: a run's by the run (`output/tiny/final` is `tiny`), others by their folder."""
    folder = Path(checkpoint).resolve()
    if re.fullmatch(r"final|best|checkpoint-\d+", folder.name) and folder.parent.name:
        step = folder.name.removeprefix("checkpoint-")
        return folder.parent.name + (f" at step {step}" if step.isdecimal() else "")
    return folder.name or "model"
