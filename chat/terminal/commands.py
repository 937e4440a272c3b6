"""What can be done beside asking: words that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from chat.generation import Sampling
from chat.image_paths import existing_image_paths
from chat.loaded_images import LoadedImage, open_image
from chat.saved_dialogues import load_dialogue, save_dialogue
from chat.session import ChatError, ChatSession
from chat.terminal.screens import Screen

LENGTH = "length"
_KINDS = {each.name: each.type for each in fields(Sampling)}
SETTINGS = (*_KINDS, LENGTH)


class Repl(Protocol):
    """What commands ask of `chat.terminal.repl.Repl`."""

    session: ChatSession
    screen: Screen
    waiting: tuple[LoadedImage, ...]

    def ask(self, question: str) -> None: ...

    def add_images(self, places: Sequence[str]) -> None: ...

    def show_images(self) -> None: ...


class SettingError(ValueError):
    """A setting that there is not, or a value that it cannot have."""


class Leave(Exception):  # noqa: N818 (not an error)
    """The user wants to end the chat."""


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


def _images(repl: Repl, _: str) -> None:
    repl.show_images()


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
    """Set one of `SETTINGS`. Raises `SettingError`, and `SamplingError` for a value that makes no sense."""
    if name not in SETTINGS:
        raise SettingError(f"there is no setting {name!r}; there are {', '.join(SETTINGS)}")
    kind: type[float] | type[int] = float if _KINDS.get(name) is float else int
    try:
        number = kind(value)
    except ValueError as error:
        wanted = "a number" if kind is float else "a whole number"
        raise SettingError(f"{name} takes {wanted}, not {value!r}") from error
    if name != LENGTH:
        changed: dict[str, Any] = {name: number}
        session.sampling = replace(session.sampling, **changed)
    elif number < 1:
        raise SettingError(f"{LENGTH} is {number}; an answer needs at least 1 token")
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
    "/images": Command("", "list the images with their numbers", _images),
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
