"""Serve a checkpoint to OpenAI's clients: `python -m chat.serving --checkpoint_path FOLDER`."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chat.arguments import (
    add_answer_arguments,
    add_checkpoint_arguments,
    add_image_store_arguments,
    add_max_images,
    load_session,
    positive,
    sampling_of,
)
from chat.server_setup import (
    KEY_VARIABLE,
    LOOPBACK,
    LOOPBACK_NAMES,
    MEBIBYTE,
    Limits,
    add_address_arguments,
    listening_socket,
    model_name,
)
from utils.commands import Parser, UsageError, command, end_process

if TYPE_CHECKING:
    from chat.serving.service import Serving

logger = logging.getLogger("chat.serving")  # __name__ is __main__ where this file is the program


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parsed = _parser().parse_args(arguments)
    # Here, not above: they take seconds, which --help need not wait for.
    import uvicorn

    from chat.serving.app import build_app
    from utils.distributed import configure_logging

    configure_logging(logging.INFO)
    serving = _serving(parsed)
    listening = listening_socket(parsed.host, parsed.port)  # before the model: it takes its time
    session = load_session(parsed)
    if serving.key is None and parsed.host not in LOOPBACK:
        logger.warning("note: anybody who reaches %s may use this server; set %s", parsed.host, KEY_VARIABLE)
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    logger.info("serving %s at http://%s:%d/v1", serving.name, host, listening.getsockname()[1])
    settings = uvicorn.Config(
        build_app(session, serving),
        log_level="warning",
        timeout_graceful_shutdown=parsed.grace_seconds,
        server_header=False,
    )
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C has ended it in good order
        uvicorn.Server(settings).run([listening])
    return 0


def _serving(parsed: argparse.Namespace) -> Serving:
    limits = Limits(
        body_bytes=parsed.max_body_mb * MEBIBYTE,
        image_bytes=parsed.max_image_mb * MEBIBYTE,
        image_pixels=parsed.max_image_pixels,
        max_tokens=parsed.max_tokens,
        queue=parsed.queue,
    )
    from chat.remote_images import RemoteImages
    from chat.serving.images import Sources
    from chat.serving.service import Serving

    try:
        networks = [ipaddress.ip_network(each) for each in parsed.allow_networks]
    except ValueError as error:
        raise UsageError(f"--allow_networks: {error}") from error
    remote = RemoteImages(limits.image_bytes, networks=networks)
    folder = None if parsed.allow_images_in is None else Path(parsed.allow_images_in)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--allow_images_in {folder}: there is no such folder")
    return Serving(
        name=parsed.model_name or model_name(parsed.checkpoint_path),
        limits=limits,
        sources=Sources(remote if parsed.allow_remote_images else None, folder),
        sampling=sampling_of(parsed),
        max_new_tokens=parsed.generation_length_per_round,
        slots=parsed.slots,
        key=os.environ.get(KEY_VARIABLE) or None,
        hosts=LOOPBACK_NAMES if parsed.host in LOOPBACK else None,
        origins=tuple(parsed.allow_origins),
        lenient=parsed.lenient,
    )


def _origin(text: str) -> str:
    """The origin of a web page as browsers name it, as argparse takes it."""
    origin = text.removesuffix("/").lower()
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
        raise argparse.ArgumentTypeError(f"{text!r} is no origin: give https://app.example.org, or *")
    return origin


def _parser() -> Parser:
    parser = Parser(
        prog="python -m chat.serving",
        description="An OpenAI-compatible server: chat completions with images.",
        epilog=f"A key that clients must bring is read from the environment: {KEY_VARIABLE}.",
    )
    add_checkpoint_arguments(parser)
    add_address_arguments(parser, 8000)
    parser.add_argument("--model_name", help="name of the model in the API (default: the run's name)")
    parser.add_argument(
        "--grace_seconds",
        type=positive,
        default=120,
        help="seconds for running answers to finish after SIGTERM (default: %(default)s)",
    )
    answers = parser.add_argument_group("defaults for requests that do not set these")
    add_answer_arguments(answers, seed=None)  # each request has its own
    add_image_store_arguments(parser)
    requests = parser.add_argument_group("requests")
    requests.add_argument(
        "--lenient",
        action="store_true",
        help="ignore unknown request fields (default: refuse them)",
    )
    requests.add_argument(
        "--allow_origins",
        nargs="+",
        type=_origin,
        default=[],
        metavar="ORIGIN",
        help="web pages that browsers may call the server from (CORS): https://app.example.org ..., or * for all",
    )
    limits = parser.add_argument_group("limits of a request")
    ours = Limits()
    add_max_images(limits)
    for flag, default, what in (
        ("--max_tokens", ours.max_tokens, "in an answer"),
        ("--max_body_mb", ours.body_bytes // MEBIBYTE, "size of a request"),
        ("--max_image_mb", ours.image_bytes // MEBIBYTE, "size of an image file"),
        ("--max_image_pixels", ours.image_pixels, "pixels of an image"),
        ("--slots", 4, "requests answered at once; each slot keeps its last dialogue"),
        ("--queue", ours.queue, "requests that may wait; further ones get 429"),
    ):
        limits.add_argument(flag, type=positive, default=default, help=f"{what} (default: %(default)s)")
    images = parser.add_argument_group(
        "images that a request names by URL; all are refused unless allowed here"
    )
    images.add_argument(
        "--allow_remote_images", action="store_true", help="fetch http(s) URLs, from public IP addresses only"
    )
    images.add_argument(
        "--allow_networks",
        nargs="+",
        default=[],
        metavar="NETWORK",
        help="private networks to fetch from as well: 10.1.0.0/16 ...",
    )
    images.add_argument("--allow_images_in", metavar="FOLDER", help="read image files in this folder")
    return parser


if __name__ == "__main__":
    end_process(main())
