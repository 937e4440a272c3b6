"""Images of coloured shapes, and questions about them, each with the one right answer.

    color   what color is the circle in image 2?    red
    shape   what shape is in image 1?               square
    exist   is there a blue cross in image 1?       yes

With a single image, questions call it "the image".
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from helper.demonstration.dialogues import Round

COLORS = {
    "red": (214, 48, 49),
    "green": (46, 174, 82),
    "blue": (58, 104, 232),
    "yellow": (242, 212, 60),
    "purple": (162, 72, 204),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
THINGS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
CHOICES = {"color": tuple(COLORS), "shape": SHAPES, "exist": ("yes", "no")}
"""The answers to each kind of question."""
DESCRIBE = "describe the image."
SIDE = 64
"""Pixels of an image, both ways."""
_FORMATS = {".jpg": "JPEG", ".png": "PNG", ".gif": "GIF"}


def caption(thing: str) -> str:
    return f"one object: {thing}"


class Album:
    """Draws things and asks about them; the same seed gives the same."""

    def __init__(self, seed: list[int]) -> None:
        self.rng = np.random.default_rng(seed)

    def thing(self) -> str:
        return str(self.rng.choice(THINGS))

    def image(self, thing: str) -> Image.Image:
        """A dark square with the shape on it, somewhere."""
        color, shape = thing.split()
        picture = Image.new("RGB", (SIDE, SIDE), tuple(self.rng.integers(18, 60, 3).tolist()))
        canvas, fill = ImageDraw.Draw(picture), COLORS[color]
        radius = int(self.rng.integers(12, 22))
        x, y = self.rng.integers(radius, SIDE - radius, 2).tolist()
        left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
        arm = radius // 3
        if shape == "circle":
            canvas.ellipse((left, top, right, bottom), fill)
        elif shape == "square":
            canvas.rectangle((left, top, right, bottom), fill)
        elif shape == "triangle":
            canvas.polygon([(x, top), (left, bottom), (right, bottom)], fill)
        else:
            canvas.rectangle((x - arm, top, x + arm, bottom), fill)
            canvas.rectangle((left, y - arm, right, y + arm), fill)
        return picture

    def encoded(self, thing: str, ending: str = ".jpg") -> bytes:
        """The bytes of an image file of `thing`."""
        file = io.BytesIO()
        self.image(thing).save(file, _FORMATS[ending])
        return file.getvalue()

    def draw(self, thing: str, path: Path) -> None:
        """Write an image file of `thing`; the ending of its name says of which format."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.encoded(thing, path.suffix))

    def dialogue(self, things: Sequence[str], rounds: int = 1) -> list[Round]:
        """Questions about images of `things`, which come one with each round, all that are left with the last."""
        known, asked = 0, []
        for number in range(1, rounds + 1):
            shown = len(things) if number == rounds else min(known + 1, len(things))
            place = int(self.rng.integers(shown))
            name = "the image" if len(things) == 1 else f"image {place + 1}"
            asked.append(Round(*self._question(things[place], name), tuple(things[known:shown])))
            known = shown
        return asked

    def _question(self, thing: str, name: str) -> tuple[str, str, str]:
        color, shape = thing.split()
        kind = str(self.rng.choice(tuple(CHOICES)))
        if kind == "color":
            return f"what color is the {shape} in {name}?", color, kind
        if kind == "shape":
            return f"what shape is in {name}?", shape, kind
        other = thing if self.rng.random() < 0.5 else self.thing()
        return f"is there a {other} in {name}?", "yes" if other == thing else "no", kind
