"""Chat with a checkpoint at a terminal: `python -m chat.chat --checkpoint_path FOLDER`.

Each round asks for image paths, then for a question. It works in a pipe too: lines of standard input
alternate in the same way, and the transcript goes to standard output.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from chat.checkpoint_arguments import (
    add_checkpoint_arguments,
    add_sampling_arguments,
    load_named_checkpoint,
    positive,
)
from chat.image_paths import ImagePathError, existing_image_paths
from chat.sampling import Sampling, SamplingError
from chat.session import MAX_IMAGES, MAX_NEW_TOKENS, ChatError, ChatSession
from utils.conversation import ConversationError, Image, ImageError
from utils.distributed import configure_logging
from utils.model import CheckpointError

HELP = "Give paths of images (or na for none), then a question. clear: a new dialogue; quit: leave."

INTERRUPTED = 130
"""The exit status that shells give to what Ctrl-C ended."""


class Leave(Exception):  # noqa: N818 (not an error)
    """The user wants to end the chat."""


class Restart(Exception):  # noqa: N818 (not an error)
    """The user wants an empty dialogue."""


class TerminalChat:
    """The rounds of a chat over a session."""

    def __init__(self, session: ChatSession, console: Console) -> None:
        self._session = session
        self._console = console

    def run(self) -> None:
        """Rounds until the user leaves or the input ends."""
        self._console.print(HELP, style="dim", soft_wrap=True)
        while True:
            try:
                self._round()
            except Leave:
                return
            except Restart:
                self._session.clear()
                self._console.print("A new dialogue: images and rounds so far are forgotten.", style="dim")
            except (ChatError, ConversationError) as error:
                self._complain(str(error))
            except KeyboardInterrupt:
                self._session.stop()
                self._console.print("\nStopped. `quit` leaves.", style="yellow")

    def _round(self) -> None:
        images = self._ask_for_images()
        question = ""
        while not question.strip():
            question = self._read("Question")
        answer = self._session.ask(question, images)
        self._console.print("[bold green]Answer:[/] ", end="")
        for piece in answer:
            self._console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        self._console.print()
        cost = self._session.statistics[-1]
        self._console.print(
            f"({cost.computed_tokens} tokens computed of {cost.prompt_tokens + cost.generated_tokens},"
            f" new images: {cost.encoded_images}, {cost.seconds:.1f} s"
            + (", cut at the length limit)" if cost.end == "length" else ")"),
            style="dim",
            highlight=False,
        )

    def _ask_for_images(self) -> tuple[Image, ...]:
        while True:
            line = self._read("Images")
            try:
                images = self._session.open_images(existing_image_paths(line))
            except (ChatError, ImageError, ImagePathError) as error:
                self._complain(str(error))
                continue
            for number, image in enumerate(images, start=len(self._session.images) + 1):
                width, height = image.open().size
                self._console.print(
                    f"  image {number}: {escape(image.name)} ({width} x {height})", style="dim"
                )
            return images

    def _read(self, prompt: str) -> str:
        """A line of input; `quit`, `clear` and the end of the input leave by exceptions."""
        self._console.print(f"[bold cyan]{prompt}:[/] ", end="")
        try:
            line = input()
        except EOFError:
            self._console.print()
            raise Leave from None
        if not sys.stdin.isatty():
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)  # for the transcript
        match line.strip().lower():
            case "quit" | "exit":
                raise Leave
            case "clear":
                raise Restart
        return line

    def _complain(self, message: str) -> None:
        self._console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parsed = _parser().parse_args(arguments)
    configure_logging(logging.WARNING)
    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        sampling = Sampling(
            parsed.temperature, parsed.top_p, parsed.top_k, parsed.repetition_penalty, parsed.seed
        )
        session = ChatSession(
            *load_named_checkpoint(parsed, parsed.checkpoint_path),
            max_images=parsed.max_images,
            max_new_tokens=parsed.generation_length_per_round,
            max_seq_len=parsed.max_seq_len,
            sampling=sampling,
        )
    except (CheckpointError, SamplingError) as error:
        errors.print(f"error: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    TerminalChat(session, console).run()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chat.chat", description="Chat with a checkpoint: several images, several rounds."
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--generation_length_per_round",
        type=positive,
        default=MAX_NEW_TOKENS,
        help="tokens of an answer at most",
    )
    parser.add_argument(
        "--max_images", type=positive, default=MAX_IMAGES, help="images of a dialogue at most"
    )
    add_sampling_arguments(parser, seed=1234)
    return parser


if __name__ == "__main__":
    sys.exit(main())
