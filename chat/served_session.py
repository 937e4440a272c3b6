"""What page and server start with alike: where they listen, and a session over the checkpoint."""

import argparse

from chat.checkpoint_arguments import load_named_checkpoint
from chat.image_store_arguments import store_settings
from chat.session import ChatSession

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def add_address_arguments(parser: argparse.ArgumentParser, port: int) -> None:
    """`--host`, this machine only by default, and `--port`."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=port)


def load_session(parsed: argparse.Namespace) -> ChatSession:
    """A session over the checkpoint that the command line names, with its image store.

    Raises `CheckpointError` where it cannot be loaded.
    """
    model, processor = load_named_checkpoint(parsed, parsed.checkpoint_path)
    return ChatSession(
        model,
        processor,
        max_images=parsed.max_images,
        max_seq_len=parsed.max_seq_len,
        **store_settings(parsed, model, processor),
    )
