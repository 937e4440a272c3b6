"""Lines that a person types: with editing, history and completion."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings

from chat.terminal.repl import COMMANDS


class PromptInput:
    """Typed by a person: editing, history over sessions, completion of commands and paths.

    Enter sends the line; Alt-Enter starts a new one within it.
    """

    def __init__(self, history: Path | None) -> None:
        if history is not None:
            history.parent.mkdir(parents=True, exist_ok=True)
            os.close(
                os.open(history, os.O_CREAT | os.O_WRONLY, 0o600)
            )  # questions are nobody else's business
        keys = KeyBindings()

        @keys.add("escape", "enter")
        @keys.add("escape", "c-j")  # the same, typed while an answer was still coming
        def _(event) -> None:
            event.current_buffer.insert_text("\n")

        self._prompt = FormattedText([("bold ansicyan", "> ")])
        self._session: PromptSession[str] = PromptSession(
            history=InMemoryHistory() if history is None else FileHistory(str(history)),
            auto_suggest=AutoSuggestFromHistory(),
            completer=_Commands(),
            complete_while_typing=False,
            key_bindings=keys,
        )

    def read(self) -> str:
        """The next line. Raises `EOFError` at Ctrl-D, `KeyboardInterrupt` where it is thrown away."""
        line = ""
        while not line.strip():
            line = self._session.prompt(self._prompt)
        return line


class _Commands(Completer):
    """Commands at the beginning of a line, paths behind those that take a file."""

    def __init__(self) -> None:
        helps = {name: each.help for name, each in COMMANDS.items()}
        self._words = WordCompleter(list(COMMANDS), pattern=re.compile(r"/\w*"), meta_dict=helps)
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        name, space, rest = document.text_before_cursor.partition(" ")
        if not space:
            yield from self._words.get_completions(document, complete_event)
        elif name in COMMANDS and "FILE" in COMMANDS[name].argument:
            yield from self._paths.get_completions(Document(rest.rpartition(" ")[2]), complete_event)


def default_history() -> Path:
    """Where programs keep such things: https://specifications.freedesktop.org/basedir-spec"""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "visualchat" / "history"
