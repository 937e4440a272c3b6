"""What is shown of answers and costs."""

import json
from io import StringIO

import pytest
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


def test_an_answer_cannot_do_things_to_the_terminal():
    answer = "\x1b]0;title\x07 [bold] :smile: \x9b2J\x7f é 猫\n\td"
    outputs = [StringIO() for _ in range(3)]
    colours = Console(file=outputs[0], force_terminal=True, color_system="standard")
    for screen in (ColourScreen(colours), PlainScreen(outputs[1]), JsonScreen(outputs[2])):
        screen.piece(answer)
        screen.end(answer, COST)
    coloured, plain, line = (each.getvalue() for each in outputs)
    assert "\x1b]0" not in coloured and "[bold] :smile:" in coloured and "\x1b[2m" in coloured
    lost = "\N{REPLACEMENT CHARACTER}"
    assert plain == f"{lost}]0;title{lost} [bold] :smile: {lost}2J{lost} é 猫\n\td\n"
    assert line == harmless(line) and "é 猫" in line and json.loads(line)["answer"] == answer


@pytest.mark.parametrize("piece", [1, 1000])
@pytest.mark.parametrize(
    "text, lines",
    [
        ("red, green and blue", ["red, green", "and blue"]),
        ("one\n\n  two three four", ["one", "", "  two", "three four"]),
        ("see https://example.org/cat.jpg now", ["see", "https://example.org/cat.jpg", "now"]),
        ("there are 四角形が二つ", ["there are", "四角形が二", "つ"]),
    ],
)
def test_lines_break_between_words(text, lines, piece):
    wrap = WordWrap()
    pieces = [text[start : start + piece] for start in range(0, len(text), piece)]
    shown = "".join(wrap.push(each, 10) for each in pieces) + wrap.finish(10)
    assert shown.split("\n") == lines


def test_an_answer_and_what_is_told_are_broken_at_the_width_of_the_terminal():
    file = StringIO()
    screen = ColourScreen(Console(file=file, width=30))
    for piece in ("There are five", " shapes in the", " image, all of them red."):
        screen.piece(piece)
    screen.complain("there is no memory left on the device")  # in the middle of it
    assert file.getvalue() == (
        "There are five shapes in the\nimage, all of them red.\nthere is no memory left on the\ndevice\n"
    )
