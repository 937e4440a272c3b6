"""The tiny model and the pictures of the chat's tests, and evaluation sets over them."""

import json
from pathlib import Path

import pytest

from tests.chat.conftest import base_models, build, checkpoint, model_and_processor, pictures  # noqa: F401


@pytest.fixture
def mixed_set(pictures: list[Path]) -> Path:  # noqa: F811
    """Dialogues of different lengths, with no, one and several images at different turns, in all forms."""
    first, second, third = (f"'{path.name}'" for path in pictures[:3])
    content = {
        "one": [["What is it?", first, "red", "colour"], ["And?"], ["Why?", "na", ["two", "2"], "count"]],
        "none": [["Hello?"]],
        "several": [
            ["Compare.", f"{first} {second}", "Red.", "colour"],
            {"question": "And this?", "images": [pictures[2].name], "answer": "blue", "kind": "colour"},
        ],
        "late": [["Hello, who are you?"], ["What is it?", third], ["Sure?"], ["Really, truly sure?"]],
        "plain": ["Just a question?", ["Look!", second]],
    }
    file = pictures[0].parent / "mixed.json"
    file.write_text(json.dumps(content))
    return file
