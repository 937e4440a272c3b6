"""What is shown of answers and costs."""

import json
import re
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from chat.session import Cost, RoundStatistics
from chat.terminal.screens import ColourScreen, JsonScreen, PlainScreen, WordWrap, harmless

COST = Cost(
    RoundStatistics(
        prompt_tokens=1000, generated_tokens=21, computed_tokens=40, computed_image_tokens=5, encoded_images=1,
        seconds_to_first_token=0.5, seconds=2.5, end="length",
    ),
    images=2,
    most_tokens=4096,
)  # fmt: skip


def test_the_status_line():
    assert str(COST) == (
        "1,021 of 4,096 tokens (40 computed) · 2 images (1 new) · first token 0.50 s · 10.0 tokens/s"
        " · cut at the length limit"
    )


def test_a_text_cannot_do_things_to_the_terminal():
    assert (
        harmless("a\x1b[2Jb\r\x07c\n\td é 猫")
        == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}c\n\td é 猫"
    )
    file = StringIO()
    screen = ColourScreen(Console(file=file, force_terminal=True, color_system="standard"))
    screen.piece("\x1b]0;title\x07 [bold] :smile:")
    screen.end("", COST)
    shown = file.getvalue()
    assert "\x1b]0" not in shown and "[bold] :smile:" in shown and "\x1b[2m" in shown


def test_neither_can_an_answer_in_plain_text_or_json():
    answer = "\x1b]0;title\x07 \x9b2J\x7f é 猫\n"
    output, errors = StringIO(), StringIO()
    screen = PlainScreen(output, errors)
    for piece in answer:
        screen.piece(piece)
    screen.end(answer, COST)
    assert output.getvalue() == harmless(answer) + "\n" and not errors.getvalue()

    output = StringIO()
    screen = JsonScreen(output, errors)
    screen.end(answer, COST)
    assert output.getvalue() == harmless(output.getvalue()) and "é 猫" in output.getvalue()
    assert json.loads(output.getvalue())["answer"] == answer  # and nothing is lost


def wrapped(text: str, width: int, piece: int, hanging: int = 0) -> str:
    wrap = WordWrap(hanging)
    pieces = [text[start : start + piece] for start in range(0, len(text), piece)]
    return "".join(wrap.push(each, width) for each in pieces) + wrap.finish(width)


@pytest.mark.parametrize("piece", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    "text, lines",
    [
        ("red, green and blue", ["red, green", "and blue"]),
        ("exactly 10 or more", ["exactly 10", "or more"]),
        ("one\n\n  two three four", ["one", "", "  two", "three four"]),
        ("a  b\tc", ["a  b    c"]),
        ("see https://example.org/cat.jpg now", ["see", "https://example.org/cat.jpg", "now"]),
        ("there are 四角形が二つ", ["there are", "四角形が二", "つ"]),
        ("四角形が五。円", ["四角形が", "五。円"]),  # no line begins with a full stop
        ("四角形が「円」", ["四角形が", "「円」"]),  # and none ends with an opening mark
        ("été à Orléans même", ["été à", "Orléans", "même"]),
        ("", [""]),
    ],
)
def test_lines_break_between_words(text, lines, piece):
    assert wrapped(text, 10, piece).split("\n") == lines


@pytest.mark.parametrize("width", [20, 60, 80])
def test_no_line_is_too_long_and_nothing_is_lost(width):
    text = (
        "How many squares, circles and tri\xadangles? 図形は五つ、です。 Well-known: 3 + 4 = 12.\n1. one\n"
        * 20
    )
    shown = wrapped(text, width, 3)
    assert max(map(cell_len, shown.split("\n"))) <= width
    assert "".join(shown.split()) == "".join(text.split())
    assert shown.replace("\n", " ").replace(" ", "") == text.replace("\n", " ").replace(" ", "")


def test_an_answer_and_what_is_told_are_broken_at_the_width_of_the_terminal():
    file = StringIO()
    screen = ColourScreen(Console(file=file, width=30))
    for piece in re.findall(" ?[^ ]+", "There are five shapes in the image, all of them red."):
        screen.piece(piece)
    screen.complain("there is no memory left on the device")  # in the middle of it
    screen.note("  /image FILE  images for the next question of the dialogue")
    assert file.getvalue() == (
        "There are five shapes in the\nimage, all of them red.\n"
        "there is no memory left on the\ndevice\n"
        "  /image FILE  images for the\n               next question\n               of the dialogue\n"
    )
