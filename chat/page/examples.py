"""The example cards on an empty page: questions with images, from the checkpoint's folder if it has examples.

A checkpoint brings them as dialogues in its folder `examples`; the first question of each is a card.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image

from chat.saved_dialogues import DialogueFileError, load_dialogue
from utils.commands import ROOT
from utils.conversation import Image, ImageError
from utils.distributed import get_logger

logger = get_logger(__name__)

EXAMPLES = "examples"
"""The folder of a checkpoint that holds dialogues, as /save and "Download" write them."""

IMAGES = ROOT / "eval" / "eval_data" / "image"
GENERAL_EXAMPLES = (
    ("What is in this image?", ("cat.jpg",)),
    ("What is different between image 1 and image 2?", ("street_day.png", "street_evening.png")),
    ("Tell the story of these four images.", ("comic_1.png", "comic_2.png", "comic_3.png", "comic_4.png")),
)
"""The cards of a checkpoint that brings none."""


def examples_of(checkpoint: Path, folder: Path) -> list[dict[str, Any]]:
    """The checkpoint's example cards, as `gr.Chatbot` takes them; their images are written to `folder`."""
    if not (checkpoint / EXAMPLES).is_dir():
        return [
            {"text": text, "files": [str(IMAGES / name) for name in names]}
            for text, names in GENERAL_EXAMPLES
            if all((IMAGES / name).is_file() for name in names)
        ]
    cards = []
    for file in sorted((checkpoint / EXAMPLES).glob("*.json")):
        try:
            turns, _ = load_dialogue(file)
        except (DialogueFileError, ImageError) as error:
            logger.warning("note: this example is left out: %s", error)
            continue
        for turn in turns[:1]:
            files = [_written(image, folder / file.stem / str(n)) for n, image in enumerate(turn.images, 1)]
            cards.append({"text": turn.question, "files": files})
    return cards


def _written(image: Image, place: Path) -> str:
    """An image of a saved dialogue as a file there; returns its path, with the ending of its format."""
    content = image.source
    assert isinstance(content, bytes)
    path = place.with_suffix(f".{(PIL.Image.open(BytesIO(content)).format or 'png').lower()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)
