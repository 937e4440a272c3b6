"""Scenes to describe, to count in and to compare: a street, a beach, a table, a comic of four panels."""

import PIL.Image

from eval.pictures.canvas import Canvas, around


def street(evening: bool) -> PIL.Image.Image:
    """A house in a street. In the evening the windows are lit, and a bicycle has come for the car."""
    canvas = Canvas("#22305a" if evening else "#9fd3f5")
    canvas.box(0, 250, 480, 50, "#35502f" if evening else "#7cc069")
    canvas.box(0, 290, 480, 70, "#3b3b42" if evening else "#8a8a90")
    for x in range(20, 480, 80):
        canvas.box(x, 322, 40, 5, "white")
    if evening:
        canvas.disc(400, 60, 30, "#f4efc8")
        canvas.disc(388, 52, 27, "#22305a")
        for x, y in [(40, 40), (90, 90), (300, 30), (350, 120), (150, 35), (455, 140)]:
            canvas.disc(x, y, 2, "white")
    else:
        canvas.disc(410, 60, 32, "#ffd23c")
        for degrees in range(0, 360, 45):
            canvas.line([around(410, 60, 38, degrees), around(410, 60, 52, degrees)], "#ffd23c", 4)
        for x in (70, 95, 120):
            canvas.disc(x, 60, 24, "white", flat=0.8)
    _house(canvas, lit=evening)
    canvas.box(372, 180, 16, 75, "#7a4f2b")
    for x, y in [(360, 165), (400, 165), (380, 135), (380, 170)]:
        canvas.disc(x, y, 32, "#245c2a" if evening else "#3c9a43")
    if evening:
        _bicycle(canvas, 405, 262)
    else:
        _car(canvas, 60, 262, "#2f62d8")
    return canvas.pixels()


def _house(canvas: Canvas, lit: bool) -> None:
    canvas.box(130, 140, 170, 115, "#f1dfb8")
    canvas.polygon([(115, 142), (215, 70), (315, 142)], "#c0392b")
    canvas.box(255, 80, 20, 40, "#8e4a3a")
    canvas.box(195, 190, 38, 65, "#2e8b57")
    canvas.disc(225, 225, 3, "#ffd23c")
    for x in (145, 247):
        canvas.box(x, 165, 38, 38, "#ffe27a" if lit else "#cfe8f7", "#7a4f2b", 3)
        canvas.line([(x + 19, 165), (x + 19, 203)], "#7a4f2b", 2)
        canvas.line([(x, 184), (x + 38, 184)], "#7a4f2b", 2)


def _car(canvas: Canvas, x: float, y: float, color: str) -> None:
    canvas.polygon([(x + 22, y + 18), (x + 38, y - 8), (x + 88, y - 8), (x + 108, y + 18)], color)
    canvas.polygon([(x + 42, y - 2), (x + 60, y - 2), (x + 60, y + 16), (x + 32, y + 16)], "#d7ecfa")
    canvas.polygon([(x + 66, y - 2), (x + 85, y - 2), (x + 98, y + 16), (x + 66, y + 16)], "#d7ecfa")
    canvas.box(x, y + 16, 130, 26, color, radius=8)
    for wheel in (x + 30, x + 100):
        canvas.disc(wheel, y + 42, 14, "#222222")
        canvas.disc(wheel, y + 42, 6, "#bbbbbb")


def _bicycle(canvas: Canvas, x: float, y: float) -> None:
    for wheel in (x - 25, x + 30):
        canvas.disc(wheel, y + 12, 18, outline="#dddddd", line=3)
    red = "#ff5a4d"
    frame = [(x - 25, y + 12), (x - 12, y - 16), (x + 22, y - 16), (x + 2, y + 12), (x - 25, y + 12)]
    canvas.line(frame, red, 4)
    canvas.line([(x - 14, y - 22), (x + 2, y + 12)], red, 4)
    canvas.line([(x + 30, y + 12), (x + 20, y - 26), (x + 32, y - 28)], red, 4)
    canvas.box(x - 22, y - 26, 18, 5, "#dddddd")


def beach() -> PIL.Image.Image:
    """Sea with two sailing boats, a striped parasol, a ball and a crab on the sand."""
    canvas = Canvas("#aee3ff")
    canvas.box(0, 130, 480, 110, "#2d8fce")
    canvas.box(0, 235, 480, 125, "#f0d9a0")
    canvas.disc(70, 55, 30, "#ffd23c")
    for x, y, sail in [(180, 130, "white"), (370, 150, "#e74c3c")]:
        canvas.polygon([(x - 34, y), (x + 34, y), (x + 22, y + 18), (x - 22, y + 18)], "#7a4f2b")
        canvas.line([(x, y), (x, y - 70)], "#5a3a1e", 3)
        canvas.polygon([(x + 3, y - 68), (x + 36, y - 8), (x + 3, y - 8)], sail)
    canvas.line([(110, 330), (110, 210)], "#7a4f2b", 5)
    for index, color in enumerate(["#e74c3c", "white", "#e74c3c", "white", "#e74c3c", "white"]):
        canvas.slice(110, 235, 62, 180 + 30 * index, 210 + 30 * index, color)
    canvas.disc(270, 305, 24, "#ffd23c", "#2f62d8", 6)
    canvas.box(350, 300, 44, 24, "#e8552d", radius=12)
    for side in (-1, 1):
        canvas.line([(372 + 20 * side, 305), (372 + 36 * side, 292)], "#e8552d", 4)
        canvas.disc(372 + 39 * side, 288, 8, "#e8552d")
        canvas.disc(372 + 9 * side, 297, 4, "white")
        canvas.disc(372 + 9 * side, 297, 2, "black")
        for leg in (8, 15, 22):
            canvas.line([(372 + leg * side, 322), (372 + (leg + 6) * side, 332)], "#e8552d", 3)
    return canvas.pixels()


def kitchen() -> PIL.Image.Image:
    """A table with three red apples, one green apple, two bananas, a blue cup and a yellow cup."""
    canvas = Canvas("#f6ecd9")
    canvas.box(160, 30, 160, 120, "#bfe6ff", "#8b5a2b", 8)
    canvas.line([(240, 30), (240, 150)], "#8b5a2b", 5)
    canvas.box(0, 230, 480, 130, "#a86b3c")
    canvas.box(0, 230, 480, 10, "#8b5530")
    for x, color in [(70, "#d62839"), (115, "#d62839"), (160, "#7fb800"), (93, "#d62839")]:
        y = 222 if x == 93 else 260
        canvas.disc(x, y, 22, color)
        canvas.line([(x, y - 18), (x + 4, y - 30)], "#5a3a1e", 3)
    for y in (265, 280):
        canvas.arc(250, y - 50, 52, 35, 145, "#f2c30f", 12)
    for x, color in [(345, "#2f62d8"), (420, "#f2c30f")]:
        canvas.disc(x + 28, 252, 15, outline=color, line=6)
        canvas.box(x - 25, 225, 50, 55, color, radius=6)
        canvas.disc(x, 227, 25, "#5b3a29", color, 4, flat=0.3)
    return canvas.pixels()


def comic(panel: int) -> PIL.Image.Image:
    """Panel 1 to 4 of a story: a child plants a seed, waters it, waits in doubt, and has a sunflower."""
    canvas = Canvas("#dff1ff", 360, 360)
    canvas.box(0, 270, 360, 90, "#a9743f")
    canvas.disc(310, 50, 26, "#ffd23c")
    _child(canvas, 100, 170, happy=panel != 3)
    if panel == 1:
        canvas.disc(230, 285, 16, "#7a4f2b", flat=0.5)
        canvas.disc(190, 222, 6, "#3b2a1a")
        canvas.line([(125, 205), (185, 220)], "#f2b88a", 7)
    if panel == 2:
        canvas.line([(125, 205), (165, 205)], "#f2b88a", 7)
        canvas.box(160, 190, 40, 34, "#2f62d8", radius=4)
        canvas.line([(198, 215), (222, 196)], "#2f62d8", 6)
        for x, y in [(228, 212), (234, 228), (226, 240), (238, 250), (230, 262)]:
            canvas.disc(x, y, 3, "#2f8fe8")
    if panel == 3:
        canvas.line([(230, 270), (230, 240)], "#3c9a43", 5)
        canvas.disc(220, 242, 11, "#3c9a43", flat=0.5)
        canvas.disc(241, 238, 11, "#3c9a43", flat=0.5)
        canvas.line([(122, 205), (142, 222), (124, 238)], "#f2b88a", 7)
    if panel == 4:
        canvas.line([(230, 270), (230, 120)], "#3c9a43", 8)
        canvas.disc(210, 210, 22, "#3c9a43", flat=0.45)
        canvas.disc(252, 190, 22, "#3c9a43", flat=0.45)
        for degrees in range(0, 360, 30):
            canvas.disc(*around(230, 105, 38, degrees), 13, "#ffcf1f")
        canvas.disc(230, 105, 28, "#6b4423")
        canvas.line([(125, 205), (160, 160)], "#f2b88a", 7)
        canvas.line([(80, 205), (50, 160)], "#f2b88a", 7)
    canvas.box(3, 3, 354, 354, outline="black", line=5)
    canvas.disc(28, 28, 16, "white", "black")
    canvas.text(28, 28, str(panel), 20)
    return canvas.pixels()


def _child(canvas: Canvas, x: float, y: float, happy: bool) -> None:
    canvas.box(x - 25, y + 22, 50, 60, "#e74c3c", radius=10)
    for leg in (-14, 14):
        canvas.line([(x + leg, y + 80), (x + leg, y + 130)], "#30415d", 12)
    canvas.disc(x, y, 28, "#f2b88a")
    canvas.slice(x, y - 6, 30, 180, 360, "#5a3a1e", outline=None)
    for eye in (-10, 10):
        canvas.disc(x + eye, y + 2, 3, "black")
    if happy:
        canvas.arc(x, y + 8, 12, 20, 160, "black", 3)
    else:
        canvas.line([(x - 8, y + 16), (x + 8, y + 16)], "black", 3)
