"""Scenes of the miniature world: one to four coloured shapes, each in its own quarter of a small picture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "green": (46, 174, 82),
    "blue": (58, 104, 232),
    "yellow": (242, 212, 60),
    "purple": (162, 72, 204),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
POSITIONS = ("northwest", "northeast", "southwest", "southeast")
NUMBERS = ("zero", "one", "two", "three", "four")

PICTURE_SIZE = 64  # pixels, both sides
_SUPERSAMPLING = 4  # drawn larger, then reduced, for smooth edges
_HELD_OUT_SHARE = 8  # one scene in eight is never shown in training


@dataclass(frozen=True, order=True)
class Thing:
    """One shape: its quarter (an index into `POSITIONS`), colour and form."""

    position: int
    color: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `things` are in reading order, at most one in each quarter."""

    things: tuple[Thing, ...]

    @property
    def held_out(self) -> bool:
        """True for the scenes kept for evaluation: a property of the content, so none of them is trained on."""
        digest = hashlib.sha256(repr(self.things).encode()).digest()
        return digest[0] % _HELD_OUT_SHARE == 0

    def in_words(self) -> str:
        """The scene as a caption, e.g. ``two objects: red circle northwest, blue square southeast``."""
        listed = ", ".join(f"{thing.name} {POSITIONS[thing.position]}" for thing in self.things)
        return f"{NUMBERS[len(self.things)]} object{'s' if len(self.things) > 1 else ''}: {listed}"


def random_scene(rng: np.random.Generator, things: int = len(POSITIONS)) -> Scene:
    """Draws a scene with one to `things` things, every number equally often."""
    count = int(rng.integers(1, things + 1))
    positions = sorted(rng.permutation(len(POSITIONS))[:count].tolist())
    colors = list(COLORS)
    return Scene(
        tuple(
            Thing(position, colors[rng.integers(len(colors))], SHAPES[rng.integers(len(SHAPES))])
            for position in positions
        )
    )


def sample_scene(rng: np.random.Generator, *, held_out: bool, things: int = len(POSITIONS)) -> Scene:
    """Draws a scene from the training side or from the held-out side."""
    while True:
        scene = random_scene(rng, things)
        if scene.held_out == held_out:
            return scene


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Paints `scene` as a `PICTURE_SIZE` square RGB picture; place, size and shade of each thing vary with `rng`."""
    size = PICTURE_SIZE * _SUPERSAMPLING
    quarter = size // 2
    background = tuple(int(level) for level in rng.integers(18, 60, size=3))
    picture = Image.new("RGB", (size, size), background)
    canvas = ImageDraw.Draw(picture)
    for thing in scene.things:
        radius = rng.uniform(0.27, 0.42) * quarter
        room = quarter / 2 - radius - 0.02 * quarter
        x = (thing.position % 2 + 0.5) * quarter + rng.uniform(-room, room)
        y = (thing.position // 2 + 0.5) * quarter + rng.uniform(-room, room)
        shade = np.array(COLORS[thing.color]) + rng.integers(-14, 15, size=3)
        _paint(canvas, thing.shape, x, y, radius, tuple(int(level) for level in shade.clip(0, 255)))
    small = picture.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BOX)
    noise = rng.normal(0.0, 4.0, size=(PICTURE_SIZE, PICTURE_SIZE, 3))
    return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))


def _paint(
    canvas: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: tuple[int, ...]
) -> None:
    if shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape == "square":
        side = 0.86 * radius
        canvas.rectangle((x - side, y - side, x + side, y + side), fill=fill)
    elif shape == "triangle":
        canvas.polygon(
            [(x, y - radius), (x - radius, y + 0.8 * radius), (x + radius, y + 0.8 * radius)], fill=fill
        )
    elif shape == "cross":
        arm = 0.34 * radius
        canvas.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
        canvas.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
