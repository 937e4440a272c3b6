"""A dialogue as Gradio's chat shows it: each image above the number by which the model knows it."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from chat.loaded_images import open_image
from utils.conversation import Image, Turn


def chat_messages(turns: Sequence[Turn], files: Mapping[str, str]) -> list[dict[str, Any]]:
    """Messages for `gr.Chatbot`; `files` has the path of each image's file by the image's digest."""
    numbers = count(1)
    messages: list[dict[str, Any]] = []
    for turn in turns:
        images = [_image(next(numbers), image, files[image.digest]) for image in map(open_image, turn.images)]
        messages.append({"role": "user", "content": [*images, _text(turn.question)]})
        messages.append({"role": "assistant", "content": [_text(turn.answer or "…")]})
    return messages


def _image(number: int, image: Image, path: str) -> dict[str, Any]:
    """An image component: its label is the caption, and what is read aloud has the file's name too."""
    caption = f"Image {number}"
    return {
        "type": "component",
        "component": "image",
        "value": {"path": path, "meta": {"_type": "gradio.FileData"}},
        "props": {"label": caption, "alt_text": f"{caption}: {image.name}" if image.name else caption},
        "constructor_args": {},
    }


def _text(text: str) -> dict[str, Any]:
    """A text as it is: as a bare string Gradio would take off its indentation."""
    return {"type": "text", "text": text}
