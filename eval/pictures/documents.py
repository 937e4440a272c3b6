"""Pictures to read: posters, a menu, a timetable, and charts whose numbers stand in tables here."""

import PIL.Image

from eval.pictures.canvas import HEIGHT, WIDTH, Canvas

MENU = {"Espresso": "2.20", "Cappuccino": "3.40", "Green tea": "2.80", "Orange juice": "3.90",
        "Cheese sandwich": "5.50", "Apple cake": "4.10"}  # fmt: skip
TRAINS = [("08:05", "Northport", "2", "on time"), ("08:20", "Lakeside", "5", "10 min late"),
          ("08:45", "Hillview", "1", "on time"), ("09:10", "Northport", "4", "cancelled")]  # fmt: skip
BOOKS = {"Jan": 4, "Feb": 7, "Mar": 3, "Apr": 9, "May": 6}
TEMPERATURES = {"Mon": 12, "Tue": 15, "Wed": 19, "Thu": 17, "Fri": 10, "Sat": 8, "Sun": 14}
BUDGET = {
    "rent": (50, "#2f62d8"),
    "food": (25, "#e67e22"),
    "travel": (15, "#2e8b57"),
    "savings": (10, "#c0392b"),
}


def poster_concert() -> PIL.Image.Image:
    canvas = Canvas("#14213d", 360, 480)
    canvas.text(180, 60, "SUMMER", 54, "#fca311", bold=True)
    canvas.text(180, 112, "CONCERT", 54, "#fca311", bold=True)
    for x in (95, 215):
        canvas.disc(x, 265, 24, "#e5e5e5", flat=0.8)
        canvas.line([(x + 22, 262), (x + 22, 175)], "#e5e5e5", 6)
    canvas.line([(117, 178), (237, 178)], "#e5e5e5", 12)
    canvas.text(180, 320, "Saturday, 14 June", 30, "white")
    canvas.text(180, 358, "7:30 pm, River Park", 26, "white")
    canvas.box(60, 395, 240, 55, "#fca311", radius=10)
    canvas.text(180, 422, "Tickets: 12 euros", 26, "#14213d")
    return canvas.pixels()


def poster_library() -> PIL.Image.Image:
    canvas = Canvas("#f3efe0", 360, 480)
    canvas.box(10, 10, 340, 460, outline="#2a6f4e", line=6)
    canvas.text(180, 60, "CITY LIBRARY", 40, "#2a6f4e", bold=True)
    for index, color in enumerate(["#c0392b", "#2f62d8", "#e6a817", "#2a6f4e", "#7d3c98"]):
        canvas.box(95 + 34 * index, 115 + 8 * (index % 2), 28, 100 - 8 * (index % 2), color)
    canvas.line([(80, 217), (280, 217)], "#6b4423", 6)
    lines = ["Monday to Friday", "9 am to 6 pm", "Saturday 10 am to 2 pm", "Closed on Sunday"]
    for index, line in enumerate(lines):
        canvas.text(180, 260 + 36 * index, line, 26)
    canvas.text(180, 430, "Please be quiet. No food or drinks.", 19, "#c0392b")
    return canvas.pixels()


def menu() -> PIL.Image.Image:
    canvas = Canvas("#fffaf0", 360, 420)
    canvas.text(180, 45, "Cafe Luna", 42, "#6b4423", bold=True)
    canvas.line([(40, 80), (320, 80)], "#6b4423", 3)
    for index, (item, price) in enumerate(MENU.items()):
        canvas.text(40, 115 + 42 * index, item, 25, anchor="lm")
        canvas.text(320, 115 + 42 * index, price, 25, anchor="rm")
    canvas.text(180, 385, "Wi-Fi password: moonlight", 20, "#2f62d8")
    return canvas.pixels()


def timetable() -> PIL.Image.Image:
    canvas = Canvas("#10151f", 480, 280)
    canvas.text(240, 32, "DEPARTURES", 32, "#ffd23c", bold=True)
    columns = [(25, "Time"), (120, "To"), (260, "Track"), (345, "Remarks")]
    for x, title in columns:
        canvas.text(x, 78, title, 20, "#9fb3c8", anchor="lm")
    for row, train in enumerate(TRAINS):
        y = 118 + 40 * row
        for (x, _), cell in zip(columns, train, strict=True):
            late = cell in ("10 min late", "cancelled")
            canvas.text(x, y, cell, 22, "#ff6b5a" if late else "white", anchor="lm")
        canvas.line([(20, y + 20), (460, y + 20)], "#2b3648", 1)
    return canvas.pixels()


def bar_chart() -> PIL.Image.Image:
    canvas = Canvas()
    canvas.text(WIDTH / 2, 28, "Books read by Anna", 26)
    base, unit = 310, 26
    for value in range(0, 11, 2):
        canvas.line([(60, base - unit * value), (450, base - unit * value)], "#dddddd", 1)
        canvas.text(45, base - unit * value, str(value), 18)
    for index, (month, books) in enumerate(BOOKS.items()):
        x = 85 + 74 * index
        canvas.box(x, base - unit * books, 48, unit * books, "#e67e22" if month == "Apr" else "#3b7dd8")
        canvas.text(x + 24, base + 20, month, 20)
    canvas.line([(60, base), (450, base)], width=3)
    return canvas.pixels()


def line_chart() -> PIL.Image.Image:
    canvas = Canvas()
    canvas.text(WIDTH / 2, 28, "Temperature at noon (C)", 26)
    base, unit = 310, 12
    for value in range(0, 21, 5):
        canvas.line([(60, base - unit * value), (450, base - unit * value)], "#dddddd", 1)
        canvas.text(42, base - unit * value, str(value), 18)
    points = [(85 + 55 * index, base - unit * degrees) for index, degrees in enumerate(TEMPERATURES.values())]
    canvas.line(points, "#c0392b", 4)
    for (x, y), (day, degrees) in zip(points, TEMPERATURES.items(), strict=True):
        canvas.disc(x, y, 6, "#c0392b")
        canvas.text(x, y - 17, str(degrees), 17)
        canvas.text(x, base + 20, day, 19)
    canvas.line([(60, base), (450, base)], width=3)
    return canvas.pixels()


def pie_chart() -> PIL.Image.Image:
    canvas = Canvas()
    canvas.text(WIDTH / 2, 28, "Where the money goes", 26)
    start = -90.0
    for index, (name, (percent, color)) in enumerate(BUDGET.items()):
        end = start + 3.6 * percent
        canvas.slice(165, 200, 125, start, end, color)
        start = end
        y = 120 + 45 * index
        canvas.box(320, y - 11, 22, 22, color)
        canvas.text(352, y, f"{name} {percent} %", 21, anchor="lm")
    assert HEIGHT > 200 + 125, "the pie must fit"
    return canvas.pixels()
