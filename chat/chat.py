"""The terminal chat: `python -m chat.chat --checkpoint_path FOLDER`.

At a terminal it is a conversation with editing, history and commands. Otherwise the lines of standard input, or
those of `--prompt`, are asked one after the other, and the answers go to standard output.
"""

from __future__ import annotations

if not __package__:  # called as a file, as in 2023: the module starts, and finds the project's others
    import os
    import sys
    from pathlib import Path

    root = str(Path(__file__).resolve().parents[1])
    if __name__ != "__main__":  # imported by `python -m chat.serving` in the folder chat
        print(f"error: chat.py hides the package chat here: give the command in {root}", file=sys.stderr)
        sys.exit(2)
    before = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(PYTHONPATH=os.pathsep.join(before), PYTHONSAFEPATH="1")
    python = sys.orig_argv[: -len(sys.argv)]  # with its own options
    os.execv(sys.executable, [*python, "-m", "chat.chat", *sys.argv[1:]])

import logging
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from chat.arguments import (
    add_answer_arguments,
    add_checkpoint_arguments,
    add_image_store_arguments,
    add_max_images,
    load_session,
    sampling_of,
)
from utils.commands import INTERRUPTED, Parser, command, end_process
from utils.hub import checkpoint_folder

if TYPE_CHECKING:
    from chat.terminal.repl import Repl
    from chat.terminal.screens import Screen

WELCOME = "Ask about images: /image FILE adds one, /help lists all commands, /quit leaves."


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parsed = _parser().parse_args(arguments)
    checkpoint_folder(parsed.checkpoint_path)  # a wrong one is told before seconds of imports
    # Here, not above: they take seconds, which --help need not wait for.
    from chat.terminal.repl import MISTAKES, Repl
    from utils.distributed import configure_logging

    configure_logging(logging.WARNING)
    session = load_session(
        parsed,
        max_new_tokens=parsed.generation_length_per_round,
        sampling=sampling_of(parsed),
        system=parsed.system,
    )
    person = not parsed.prompt and not parsed.json and sys.stdin.isatty() and sys.stdout.isatty()
    repl = Repl(session, _screen(parsed.json, person))
    try:
        repl.add_images(parsed.image)
    except MISTAKES as error:
        repl.screen.complain(str(error))
        return 1
    if person:
        from chat.terminal.repl import PromptInput, default_history

        lines = PromptInput(None if parsed.no_history else default_history())
        repl.screen.note(WELCOME)
        repl.run(lines.read)
        return 0
    return _answer_all(repl, parsed.prompt)


def _screen(as_json: bool, person: bool) -> Screen:
    from rich.console import Console

    from chat.terminal.screens import ColourScreen, JsonScreen, PlainScreen

    if as_json:
        return JsonScreen()
    return ColourScreen(Console(highlight=False)) if person else PlainScreen()


def _answer_all(repl: Repl, prompts: Sequence[str]) -> int:
    """One line after the other; Ctrl-C ends them all."""
    from chat.terminal.repl import Leave

    if prompts:
        questions = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]
        steps = (partial(repl.handle, question, is_question=True) for question in questions)
    else:
        steps = (partial(repl.handle, line) for line in sys.stdin if line.strip())
    try:
        for step in steps:
            step()
    except Leave:
        pass
    except KeyboardInterrupt:
        return INTERRUPTED
    return 1 if repl.screen.failed else 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m chat.chat", description="Chat with a checkpoint: several images, several rounds."
    )
    add_checkpoint_arguments(parser)
    add_max_images(parser)
    add_answer_arguments(parser, seed=1234)
    add_image_store_arguments(parser)
    parser.add_argument(
        "--system", metavar="TEXT", help="system text of the dialogue (default: the checkpoint's)"
    )
    parser.add_argument(
        "--no_history", action="store_true", help="do not save typed lines for later sessions"
    )
    asking = parser.add_argument_group("without a terminal")
    asking.add_argument(
        "--prompt",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="questions to ask, one after the other; -: the question in standard input",
    )
    asking.add_argument(
        "--image", nargs="+", default=[], metavar="FILE|URL", help="images of the first question"
    )
    asking.add_argument(
        "--json",
        action="store_true",
        help="print each answer with its token counts and times as a line of JSON",
    )
    return parser


if __name__ == "__main__":
    end_process(main())
