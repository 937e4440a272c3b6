"""A drawing surface: painted at twice the size and scaled down, for smooth edges."""

import math
from collections.abc import Sequence

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

WIDTH, HEIGHT = 480, 360
OVERSAMPLING = 2
COLORS = 128
"""Flat drawings need few colours; a palette keeps each file at some kilobytes."""

INK = "#222222"
Point = tuple[float, float]
Color = str


class Canvas:
    """Shapes and text on a picture; (0, 0) is the upper left corner, a centre `(x, y)` places a shape."""

    def __init__(self, background: Color = "white", width: int = WIDTH, height: int = HEIGHT) -> None:
        self.size = (width, height)
        self._image = PIL.Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), background)
        self._draw = PIL.ImageDraw.Draw(self._image)

    def box(self, x: float, y: float, width: float, height: float, fill: Color | None = None,
            outline: Color | None = None, line: float = 2, radius: float = 0) -> None:  # fmt: skip
        """A rectangle by its upper left corner, with rounded corners where `radius` is given."""
        corners = self._scaled([(x, y), (x + width, y + height)])
        self._draw.rounded_rectangle(
            corners, radius * OVERSAMPLING, fill, outline, round(line * OVERSAMPLING)
        )

    def disc(self, x: float, y: float, radius: float, fill: Color | None = None, outline: Color | None = None,
             line: float = 2, flat: float = 1.0) -> None:  # fmt: skip
        """A circle by its centre; `flat` is the height of an ellipse in terms of its width."""
        corners = self._scaled([(x - radius, y - radius * flat), (x + radius, y + radius * flat)])
        self._draw.ellipse(corners, fill, outline, round(line * OVERSAMPLING))

    def polygon(
        self, points: Sequence[Point], fill: Color | None = None, outline: Color | None = None
    ) -> None:
        self._draw.polygon(self._scaled(points), fill, outline)

    def line(self, points: Sequence[Point], fill: Color = INK, width: float = 2) -> None:
        self._draw.line(self._scaled(points), fill, round(width * OVERSAMPLING), joint="curve")

    def arc(self, x: float, y: float, radius: float, start: float, end: float, fill: Color = INK,
            width: float = 2) -> None:  # fmt: skip
        """Part of a circle's line, from `start` to `end` degrees, clockwise from three o'clock."""
        corners = self._scaled([(x - radius, y - radius), (x + radius, y + radius)])
        self._draw.arc(corners, start, end, fill, round(width * OVERSAMPLING))

    def slice(self, x: float, y: float, radius: float, start: float, end: float, fill: Color,
              outline: Color | None = "white") -> None:  # fmt: skip
        """A filled slice of a pie; angles as in `arc`."""
        corners = self._scaled([(x - radius, y - radius), (x + radius, y + radius)])
        self._draw.pieslice(corners, start, end, fill, outline, 2 * OVERSAMPLING)

    def text(self, x: float, y: float, text: str, size: float = 18, fill: Color = INK, anchor: str = "mm",
             bold: bool = False) -> None:  # fmt: skip
        """Text in the typeface that Pillow brings along; `anchor` as Pillow names it ("mm" is centred)."""
        font = PIL.ImageFont.load_default(size * OVERSAMPLING)
        self._draw.text(
            (x * OVERSAMPLING, y * OVERSAMPLING), text, fill, font, anchor, stroke_width=int(bold)
        )

    def pixels(self) -> PIL.Image.Image:
        """The finished picture at its own size."""
        return self._image.resize(self.size, PIL.Image.Resampling.LANCZOS).quantize(COLORS)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]


def around(x: float, y: float, radius: float, degrees: float) -> Point:
    """The point at `radius` from a centre, at an angle counted clockwise from twelve o'clock."""
    angle = math.radians(degrees - 90)
    return x + radius * math.cos(angle), y + radius * math.sin(angle)
