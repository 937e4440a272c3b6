"""A dialogue as Gradio's chat shows it: each image with the number by which the model knows it."""

from collections.abc import Mapping, Sequence
from typing import Any

from utils.conversation import Turn


def chat_messages(turns: Sequence[Turn], files: Mapping[str, str]) -> list[dict[str, Any]]:
    """Messages for `gr.Chatbot`; `files` has the path of each image's file by the image's digest."""
    messages: list[dict[str, Any]] = []
    number = 0
    for turn in turns:
        parts: list[Any] = []
        for image in turn.images:
            number += 1
            parts.append(f"Image {number}")
            parts.append({"path": files[image.digest], "alt_text": f"Image {number}"})
        messages.append({"role": "user", "content": [*parts, turn.question]})
        messages.append({"role": "assistant", "content": turn.answer or "…"})
    return messages
