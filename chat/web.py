"""The web page: `python -m chat.web --checkpoint_path FOLDER`, then open http://127.0.0.1:7860."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
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
    Limits,
    add_address_arguments,
    listening_socket,
    model_name,
)
from utils.commands import Parser, command, end_process
from utils.hub import checkpoint_folder

if TYPE_CHECKING:
    from chat.generation.decoding import Sampling
    from chat.session import ChatSession

logger = logging.getLogger("chat.web")  # __name__ is __main__ where this file is the program


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parsed = _parser().parse_args(arguments)
    # Here, not above: they take seconds, which --help need not wait for.
    from utils.distributed import configure_logging

    configure_logging(logging.INFO)
    with listening_socket(parsed.host, parsed.port) as free:  # told before the model is loaded
        parsed.port = free.getsockname()[1]
    sampling = sampling_of(parsed)
    session = load_session(parsed)
    with tempfile.TemporaryDirectory(prefix="visualchat-") as folder:
        serve(session, parsed, sampling, Path(folder))
    return 0


def serve(session: ChatSession, parsed: argparse.Namespace, sampling: Sampling, folder: Path) -> None:
    """Show the page until Ctrl-C; uploads and downloads lie in `folder`."""
    # Read when Gradio is imported: no reports home, and its files where they will be removed.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(folder / "uploads"))
    from chat.page.layout import IMAGES, STYLE, THEME, build_page, examples_of
    from chat.page.page_session import AnswerSettings, SharedEngine
    from chat.serving.engine import Engine
    from chat.serving.images import ImageOpener, Sources

    limits = Limits()
    engine = Engine(session, parsed.slots)
    settings = AnswerSettings(sampling, parsed.generation_length_per_round)
    page = build_page(
        SharedEngine(engine, ImageOpener(limits, Sources()), session),
        parsed.model_name or model_name(parsed.checkpoint_path),
        settings,
        max(limits.max_tokens, settings.max_new_tokens),
        examples_of(checkpoint_folder(parsed.checkpoint_path), folder / "examples"),
        folder,
    )
    key = os.environ.get(KEY_VARIABLE)
    if not key and parsed.host not in LOOPBACK:
        logger.warning("note: anybody who reaches %s may use this page; set %s", parsed.host, KEY_VARIABLE)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left behind
    page.launch(
        server_name=parsed.host,
        server_port=parsed.port,
        auth=("visualchat", key) if key else None,
        max_file_size=limits.image_bytes,
        allowed_paths=[str(IMAGES), str(folder)],
        footer_links=[],
        ssr_mode=False,
        share=False,
        theme=THEME,
        css=STYLE,
        quiet=True,
        prevent_thread_lock=True,
    )
    logger.info("the page is at %s; Ctrl-C ends it", page.local_url.rstrip("/"))
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
    logger.info("the page is closed")
    page.close(verbose=False)
    engine.close()


def _parser() -> Parser:
    parser = Parser(
        prog="python -m chat.web",
        description="A web page to chat with a checkpoint.",
        epilog=f"With {KEY_VARIABLE} in the environment, visitors log in as visualchat with that password.",
    )
    add_checkpoint_arguments(parser)
    add_address_arguments(parser, 7860)
    parser.add_argument("--model_name", help="name of the model on the page (default: the run's name)")
    add_max_images(parser)
    parser.add_argument(
        "--slots", type=positive, default=4, help="dialogues answered at once (default: %(default)s)"
    )
    add_answer_arguments(parser, seed=1234)
    add_image_store_arguments(parser)
    return parser


if __name__ == "__main__":
    end_process(main())
