"""What can be done beside asking: words that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chat.image_paths import existing_image_paths
from chat.opened_images import open_image
from chat.saved_dialogues import load_dialogue, save_dialogue
from chat.session import ChatError
from chat.terminal.settings import change_setting, shown_settings

if TYPE_CHECKING:
    from chat.terminal.talk import Talk


class Leave(Exception):  # noqa: N818 (not an error)
    """The user wants to end the chat."""


@dataclass(frozen=True)
class Command:
    """One of them: what follows it (`FILE`: completed as a path), what it does, and how."""

    argument: str
    help: str
    run: Callable[[Talk, str], None]


def _image(talk: Talk, argument: str) -> None:
    if not argument:
        raise ChatError(
            "/image takes paths or URLs: /image cat.jpg 'my dog.jpg' https://example.org/bird.png"
        )
    talk.add_images(existing_image_paths(argument))


def _images(talk: Talk, _: str) -> None:
    talk.show_images()


def _undo(talk: Talk, _: str) -> None:
    if talk.waiting:
        talk.waiting = ()
        talk.screen.note("Removed the images for the next question.")
        return
    turn = talk.session.undo()
    talk.screen.note(f"Taken back: {turn.question}")


def _retry(talk: Talk, _: str) -> None:
    turn = talk.session.undo()
    talk.waiting, kept = tuple(map(open_image, turn.images)), talk.waiting
    try:
        talk.ask(turn.question)
    finally:
        if not talk.waiting:  # they went with the question
            talk.waiting = kept


def _clear(talk: Talk, _: str) -> None:
    talk.session.clear()
    talk.waiting = ()
    talk.screen.note("New dialogue: earlier images and turns are forgotten.")


def _save(talk: Talk, argument: str) -> None:
    path = _file("/save", argument)
    save_dialogue(path, talk.session.turns, talk.session.system)
    rounds = len(talk.session.turns)
    talk.screen.note(f"Saved {rounds} round{'' if rounds == 1 else 's'} to {path}")


def _load(talk: Talk, argument: str) -> None:
    path = _file("/load", argument)
    talk.session.load(*load_dialogue(path))
    talk.waiting = ()
    for turn in talk.session.turns:
        talk.screen.note(f"> {turn.question}\n{turn.answer}")
    talk.show_images()


def _system(talk: Talk, argument: str) -> None:
    if argument:
        talk.session.system = None if argument == "-" else argument
    system = talk.session.system
    talk.screen.note("The system text is the checkpoint's own." if system is None else f"System: {system}")


def _set(talk: Talk, argument: str) -> None:
    if argument:
        name, _, value = argument.replace("=", " ").partition(" ")
        change_setting(talk.session, name, value.strip())
    talk.screen.note(shown_settings(talk.session))


def _help(talk: Talk, _: str) -> None:
    width = max(len(f"{name} {each.argument}") for name, each in COMMANDS.items())
    lines = [f"  {f'{name} {each.argument}':<{width}}  {each.help}" for name, each in COMMANDS.items()]
    talk.screen.note("\n".join(["Type a question, or drop image files here and type behind them.", *lines]))


def _quit(talk: Talk, _: str) -> None:
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
