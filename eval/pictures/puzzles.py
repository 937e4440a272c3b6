"""Pictures for exact questions: clocks, a map, shapes, a game, dice, a sign; and two that show nothing."""

import numpy
import PIL.Image

from eval.pictures.canvas import Canvas, around

STREETS = "#d9d4c7"


def clock(hours: int, minutes: int, color: str) -> PIL.Image.Image:
    """A wall clock with numerals and two hands, the short one for the hours."""
    canvas = Canvas("#e9e4d8", 320, 320)
    canvas.disc(160, 160, 140, "white", color, 14)
    for hour in range(1, 13):
        canvas.text(*around(160, 160, 108, 30 * hour), str(hour), 26)
    for minute in range(60):
        start = 122 if minute % 5 == 0 else 126
        canvas.line([around(160, 160, start, 6 * minute), around(160, 160, 131, 6 * minute)], "#555555", 1.5)
    canvas.line([(160, 160), around(160, 160, 62, 30 * hours + minutes / 2)], "black", 9)
    canvas.line([(160, 160), around(160, 160, 96, 6 * minutes)], "black", 5)
    canvas.disc(160, 160, 8, color)
    return canvas.pixels()


def town_map() -> PIL.Image.Image:
    """A town and a river with one bridge: station and museum west of it; school, park and bakery east."""
    canvas = Canvas("#eef0e2")
    canvas.line([(230, 0), (225, 90), (250, 180), (235, 270), (245, 360)], "#7fc4f0", 44)
    canvas.line([(0, 180), (480, 180)], STREETS, 24)
    canvas.line([(110, 0), (110, 360)], STREETS, 18)
    canvas.line([(370, 0), (370, 360)], STREETS, 18)
    canvas.box(212, 166, 72, 28, "#9b8a6b")
    canvas.text(248, 180, "Bridge", 17, "white")
    canvas.box(20, 70, 75, 45, "#c0392b", radius=4)
    canvas.text(57, 92, "Station", 18, "white")
    canvas.box(385, 70, 75, 45, "#2f62d8", radius=4)
    canvas.text(422, 92, "School", 18, "white")
    canvas.box(290, 215, 65, 120, "#8fce7e", radius=8)
    canvas.text(322, 275, "Park", 19, "#245c2a")
    canvas.box(20, 240, 75, 45, "#7d3c98", radius=4)
    canvas.text(57, 262, "Museum", 17, "white")
    canvas.box(385, 240, 75, 45, "#e67e22", radius=4)
    canvas.text(422, 262, "Bakery", 18, "white")
    canvas.polygon([(160, 20), (152, 52), (160, 45), (168, 52)], "black")
    canvas.text(160, 66, "N", 20)
    return canvas.pixels()


def shapes(second: bool) -> PIL.Image.Image:
    """Five shapes; in the second picture the circle is green and a star stands where the square was."""
    canvas = Canvas("#f7f7f7", 360, 360)
    canvas.disc(90, 90, 48, "#2e8b57" if second else "#d62839")
    if second:
        points = [around(270, 90, 52 if index % 2 == 0 else 22, 36 * index) for index in range(10)]
        canvas.polygon(points, "#f2c30f")
    else:
        canvas.box(225, 45, 90, 90, "#2f62d8")
    canvas.polygon([(180, 135), (135, 220), (225, 220)], "#7d3c98")
    canvas.box(45, 245, 100, 60, "#e67e22")
    canvas.disc(270, 275, 52, "#111111", flat=0.6)
    return canvas.pixels()


def tic_tac_toe() -> PIL.Image.Image:
    """X has two in the left column and moves next: the lower left field wins."""
    canvas = Canvas("white", 320, 320)
    for position in (115, 205):
        canvas.line([(position, 30), (position, 290)], width=5)
        canvas.line([(30, position), (290, position)], width=5)
    for row, marks in enumerate(["XO ", "XO ", "   "]):
        for column, mark in enumerate(marks):
            x, y = 70 + 90 * column, 70 + 90 * row
            if mark == "X":
                canvas.line([(x - 26, y - 26), (x + 26, y + 26)], "#c0392b", 8)
                canvas.line([(x - 26, y + 26), (x + 26, y - 26)], "#c0392b", 8)
            if mark == "O":
                canvas.disc(x, y, 28, outline="#2f62d8", line=8)
    return canvas.pixels()


def dice() -> PIL.Image.Image:
    """Three dice: a red 5, a white 2, a blue 6."""
    spots = {2: [(-1, -1), (1, 1)], 5: [(-1, -1), (1, -1), (0, 0), (-1, 1), (1, 1)],
             6: [(-1, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (1, 1)]}  # fmt: skip
    canvas = Canvas("#3f7f5f", 480, 240)
    for x, value, color, dot in [
        (95, 5, "#c0392b", "white"),
        (240, 2, "white", "black"),
        (385, 6, "#2f62d8", "white"),
    ]:
        canvas.box(x - 52, 68, 104, 104, color, radius=16)
        for column, row in spots[value]:
            canvas.disc(x + 30 * column, 120 + 30 * row, 9, dot)
    return canvas.pixels()


def sign() -> PIL.Image.Image:
    """A red-rimmed speed limit of 30 above a yellow board that says SCHOOL."""
    canvas = Canvas("#b9dcf2", 320, 400)
    canvas.box(152, 100, 16, 300, "#777777")
    canvas.disc(160, 130, 92, "white", "#d01f2e", 20)
    canvas.text(160, 132, "30", 84, bold=True)
    canvas.box(75, 245, 170, 60, "#ffd23c", "black", 4, radius=6)
    canvas.text(160, 275, "SCHOOL", 36)
    return canvas.pixels()


def blank() -> PIL.Image.Image:
    """White, nothing else."""
    return Canvas("white", 240, 240).pixels()


def noise(seed: int = 2023) -> PIL.Image.Image:
    """Random grey blocks: a picture with nothing in it to recognise."""
    blocks = numpy.random.default_rng(seed).integers(0, 256, (40, 40), dtype=numpy.uint8)
    return PIL.Image.fromarray(blocks).resize((240, 240), PIL.Image.Resampling.NEAREST)
