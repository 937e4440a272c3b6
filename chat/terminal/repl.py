"""The rounds of a chat: each line is a question, images, or a command, a word that begins with a slash."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings

from chat.generation import Sampling, SamplingError
from chat.images import (
    ImagePathError,
    LoadedImage,
    existing_image_paths,
    leading_image_paths,
    local_path,
    open_image,
)
from chat.remote_images import RemoteImages
from chat.saved_dialogues import DialogueFileError, load_dialogue, save_dialogue
from chat.session import ChatError, ChatSession, Cost
from chat.terminal.screens import Screen
from utils.conversation import ConversationError, Image, ImageError

LENGTH = "length"
_KINDS = {each.name: each.type for each in fields(Sampling)}
SETTINGS = (*_KINDS, LENGTH)
"""What /set changes."""


class Leave(Exception):  # noqa: N818 (not an error)
    """The user wants to end the chat."""


MAX_IMAGE_BYTES = 64 * 2**20

MISTAKES = (
    ChatError,
    ConversationError,
    DialogueFileError,
    ImageError,
    ImagePathError,
    SamplingError,
    OSError,
    RuntimeError,  # torch's word for a device without memory left
)
"""What costs the user a line, and leaves everything as it was."""


class Repl:
    """A dialogue at the terminal: lines are read, evaluated, printed. Images wait for the next question."""

    def __init__(self, session: ChatSession, screen: Screen) -> None:
        self.session = session
        self.screen = screen
        self.waiting: tuple[LoadedImage, ...] = ()
        self._remote = RemoteImages(MAX_IMAGE_BYTES, anywhere=True)  # the user fetches for himself

    def run(self, read: Callable[[], str]) -> None:
        """Do what each line that is read says, until the user leaves; Ctrl-C stops an answer, or drops the line."""
        while True:
            try:
                self.handle(read())
            except (EOFError, Leave):
                return
            except KeyboardInterrupt:
                self.screen.note("Stopped. /quit or Ctrl-D leaves.")

    def handle(self, line: str, is_question: bool = False) -> None:
        """Do what a line says, or ask what may look like a command but is none. Raises `Leave`."""
        try:
            if is_question:
                self.ask(line)
            else:
                self._do(line.strip())
        except MISTAKES as error:
            self.screen.complain(str(error))

    def _do(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        name = OLD_WORDS.get(line, name)
        if name in COMMANDS:
            COMMANDS[name].run(self, argument.strip())
            return
        paths, question = leading_image_paths(line)
        if not paths and name.startswith("/") and "/" not in name[1:]:
            raise ChatError(f"there is no command {name}; /help lists them")
        self.add_images(paths)
        if question:
            self.ask(question)

    def ask(self, question: str) -> None:
        """Ask with the images that wait, and show the answer as it comes."""
        pieces = self.session.ask(question, self.waiting)
        rounds = len(self.session.turns)
        self.screen.question(question)
        said = ""
        try:
            for piece in pieces:
                said += piece
                self.screen.piece(piece)
        finally:
            self.session.stop()
            if len(self.session.turns) > rounds:  # what was said stands, broken off or not
                self.waiting = ()
                cost = Cost(self.session.statistics[-1], len(self.session.images), self.session.max_seq_len)
                self.screen.end(said, cost)

    def add_images(self, places: Sequence[str]) -> None:
        """Images from files and from the web, for the next question: all of them or none."""
        new = [self._opened(place) for place in places]
        self.session.open_images([*self.waiting, *new])  # no more than may be in a dialogue
        before = len(self.session.images) + len(self.waiting)
        self.waiting = (*self.waiting, *new)
        for number, image in enumerate(new, start=before + 1):
            self.screen.note(f"  image {number}: {_shown(image)}, with the next question")

    def show_images(self) -> None:
        """All images by their numbers."""
        images = self.session.images
        for number, image in enumerate(images, start=1):
            self.screen.note(f"  image {number}: {_shown(open_image(image))}")
        for number, image in enumerate(self.waiting, start=len(images) + 1):
            self.screen.note(f"  image {number}: {_shown(image)}, with the next question")
        if not images and not self.waiting:
            self.screen.note("There are no images yet; /image FILE adds one.")

    def _opened(self, place: str) -> LoadedImage:
        if place.lower().startswith(("http://", "https://")):
            return open_image(Image(self._remote.fetch(place), place))
        return open_image(local_path(place))


def _shown(image: LoadedImage) -> str:
    return f"{image.name} ({image.size[0]} x {image.size[1]})"


@dataclass(frozen=True)
class Command:
    """One of them: what follows it (`FILE`: completed as a path), what it does, and how."""

    argument: str
    help: str
    run: Callable[[Repl, str], None]


def _image(repl: Repl, argument: str) -> None:
    if not argument:
        raise ChatError(
            "/image takes paths or URLs: /image cat.jpg 'my dog.jpg' https://example.org/bird.png"
        )
    repl.add_images(existing_image_paths(argument))


def _undo(repl: Repl, _: str) -> None:
    if repl.waiting:
        repl.waiting = ()
        repl.screen.note("Removed the images for the next question.")
        return
    turn = repl.session.undo()
    repl.screen.note(f"Taken back: {turn.question}")


def _retry(repl: Repl, _: str) -> None:
    turn = repl.session.undo()
    repl.waiting, kept = tuple(map(open_image, turn.images)), repl.waiting
    try:
        repl.ask(turn.question)
    finally:
        if not repl.waiting:  # they went with the question
            repl.waiting = kept


def _clear(repl: Repl, _: str) -> None:
    repl.session.clear()
    repl.waiting = ()
    repl.screen.note("New dialogue: earlier images and turns are forgotten.")


def _save(repl: Repl, argument: str) -> None:
    path = _file("/save", argument)
    save_dialogue(path, repl.session.turns, repl.session.system)
    rounds = len(repl.session.turns)
    repl.screen.note(f"Saved {rounds} round{'' if rounds == 1 else 's'} to {path}")


def _load(repl: Repl, argument: str) -> None:
    path = _file("/load", argument)
    repl.session.load(*load_dialogue(path))
    repl.waiting = ()
    for turn in repl.session.turns:
        repl.screen.note(f"> {turn.question}\n{turn.answer}")
    repl.show_images()


def _system(repl: Repl, argument: str) -> None:
    if argument:
        repl.session.system = None if argument == "-" else argument
    system = repl.session.system
    repl.screen.note("The system text is the checkpoint's own." if system is None else f"System: {system}")


def _set(repl: Repl, argument: str) -> None:
    if argument:
        name, _, value = argument.replace("=", " ").partition(" ")
        _change_setting(repl.session, name, value.strip())
    repl.screen.note(_shown_settings(repl.session))


def _change_setting(session: ChatSession, name: str, value: str) -> None:
    """Set one of `SETTINGS`. Raises `ChatError`, or `SamplingError` for a value that makes no sense."""
    if name not in SETTINGS:
        raise ChatError(f"there is no setting {name!r}; there are {', '.join(SETTINGS)}")
    kind: type[float] | type[int] = float if _KINDS.get(name) is float else int
    try:
        number = kind(value)
    except ValueError as error:
        wanted = "a number" if kind is float else "a whole number"
        raise ChatError(f"{name} takes {wanted}, not {value!r}") from error
    if name != LENGTH:
        changed: dict[str, Any] = {name: number}
        session.sampling = replace(session.sampling, **changed)
    elif number < 1:
        raise ChatError(f"{LENGTH} is {number}; an answer needs at least 1 token")
    else:
        session.max_new_tokens = int(number)


def _shown_settings(session: ChatSession) -> str:
    """All settings in one line."""
    values = {name: getattr(session.sampling, name) for name in _KINDS} | {LENGTH: session.max_new_tokens}
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _help(repl: Repl, _: str) -> None:
    width = max(len(f"{name} {each.argument}") for name, each in COMMANDS.items())
    lines = [f"  {f'{name} {each.argument}':<{width}}  {each.help}" for name, each in COMMANDS.items()]
    repl.screen.note("\n".join(["Type a question, or drop image files here and type behind them.", *lines]))


def _quit(repl: Repl, _: str) -> None:
    raise Leave


def _file(command: str, argument: str) -> Path:
    paths = existing_image_paths(argument)
    if len(paths) != 1:
        raise ChatError(f"{command} takes one file: {command} dialogue.json")
    return Path(paths[0])


COMMANDS: dict[str, Command] = {
    "/image": Command("FILE|URL ...", "images for the next question", _image),
    "/images": Command("", "list the images with their numbers", lambda repl, _: repl.show_images()),
    "/undo": Command("", "take back the last turn, or the images for the next question", _undo),
    "/retry": Command("", "ask the last question again", _retry),
    "/clear": Command("", "start a new dialogue", _clear),
    "/save": Command("FILE", "save the dialogue as JSON, images included", _save),
    "/load": Command("FILE", "continue a saved dialogue", _load),
    "/system": Command(
        "[TEXT|-]", "show or set the text before the dialogue; -: the checkpoint's own", _system
    ),
    "/set": Command("[NAME VALUE]", "show or change settings: temperature, top_p, seed, length, ...", _set),
    "/help": Command("", "show this list", _help),
    "/quit": Command("", "leave", _quit),
}

OLD_WORDS = {"clear": "/clear", "quit": "/quit", "exit": "/quit", "/exit": "/quit"}
"""Lines that mean a command though they look like a question: those of 2023."""


class PromptInput:
    """Typed by a person: editing, history over sessions, completion of commands and paths.

    Enter sends the line; Alt-Enter starts a new one within it.
    """

    def __init__(self, history: Path | None) -> None:
        if history is not None:
            history.parent.mkdir(parents=True, exist_ok=True)
            # Questions are nobody else's business.
            os.close(os.open(history, os.O_CREAT | os.O_WRONLY, 0o600))
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
