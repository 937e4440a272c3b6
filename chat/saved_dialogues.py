"""Dialogues as files: OpenAI's messages with the images inside, so one file is all that there is to keep or send.

The server takes such messages as they are, and training reads them as data of one's own.
"""

import base64
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image

from chat.images import LoadedImage, open_image
from utils.atomic import atomic_write
from utils.conversation import Conversation, Image, ImageError, Turn
from utils.images import image_bytes, is_data_url


class DialogueFileError(ValueError):
    """A file that holds no dialogue; the message names it and what is wrong."""


def save_dialogue(path: str | Path, turns: Sequence[Turn], system: str | None) -> None:
    """Write a dialogue; an existing file is replaced at once or not at all. Raises `OSError`."""
    atomic_write(path, json.dumps({"messages": messages(turns, system)}, ensure_ascii=False, indent=1) + "\n")


def messages(turns: Sequence[Turn], system: str | None) -> list[dict[str, Any]]:
    """A dialogue in OpenAI's shape; images carry their name beside their data."""
    said: list[dict[str, Any]] = []
    if system is not None:
        said.append({"role": "system", "content": system})
    for turn in turns:
        parts = [
            {"type": "image_url", "image_url": {"url": data_url(image)}, "name": image.name}
            for image in map(open_image, turn.images)
        ]
        said.append({"role": "user", "content": [*parts, {"type": "text", "text": turn.question}]})
        if turn.answer is not None:
            said.append({"role": "assistant", "content": turn.answer})
    return said


def data_url(image: LoadedImage) -> str:
    """The image as a URL that carries it: its own file where it came from one."""
    content = image.source
    if isinstance(content, PIL.Image.Image):
        file = BytesIO()
        content.save(file, "PNG")
        content = file.getvalue()
    with PIL.Image.open(BytesIO(content)) as opened:
        kind = opened.get_format_mimetype() or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def load_dialogue(path: str | Path) -> tuple[tuple[Turn, ...], str | None]:
    """The turns and the system text of a file that `save_dialogue` wrote.

    Raises `DialogueFileError`; `ImageError` for an image in it that is damaged.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        turns, system = _read(content["messages"])
        if turns and Conversation(turns, str(path), system).turns[-1].answer is None:
            raise ValueError("its last question has no answer")
    except OSError as error:
        raise DialogueFileError(f"{path}: it cannot be read ({error.strerror})") from error
    except ImageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DialogueFileError(f"{path}: it holds no dialogue that /save wrote ({error!r})") from error
    return turns, system


def _read(said: list[dict[str, Any]]) -> tuple[tuple[Turn, ...], str | None]:
    system: str | None = None
    turns: list[Turn] = []
    for message in said:
        match message["role"]:
            case "system":
                system = message["content"]
            case "user":
                parts = message["content"]
                images = tuple(_image(part) for part in parts if part["type"] == "image_url")
                text = "\n".join(part["text"] for part in parts if part["type"] == "text")
                turns.append(Turn(text, None, images))
            case "assistant":
                turns[-1] = Turn(turns[-1].question, str(message["content"]), turns[-1].images)
            case role:
                raise ValueError(f"there is a message of role {role!r}")
    return tuple(turns), system


def _image(part: dict[str, Any]) -> LoadedImage:
    url = part["image_url"]["url"]
    if not is_data_url(url):
        raise ValueError("an image is not in the file itself")
    return open_image(Image(image_bytes(url), str(part.get("name", ""))))
