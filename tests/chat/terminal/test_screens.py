"""What is shown of answers and costs."""

import json
from io import StringIO

from rich.console import Console

from chat.cost import Cost
from chat.session import RoundStatistics
from chat.terminal.screens import ColourScreen, JsonScreen, PlainScreen, harmless

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
