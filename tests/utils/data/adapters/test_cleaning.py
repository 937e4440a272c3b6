"""Lines, capitals and draws: only what is meant to change changes."""

import pytest

from utils.data.adapters.cleaning import capitalize_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image a shows NASA. image b too! is it? yes", "Image a shows NASA. Image b too! Is it? Yes"),
        ('he said: "go." then left. "no," she said.', 'He said: "go." Then left. "No," she said.'),
        ("(image a) is here.\nimage b is there.", "(Image a) is here.\nImage b is there."),
        ("élan. ça va? über. ñandú. я тут.", "Élan. Ça va? Über. Ñandú. Я тут."),
        ("iPhone sales. eBay too. ßharp.", "iPhone sales. eBay too. ßharp."),
        (
            "red, e.g. the hat, vs. the coat, etc. and so on.",
            "Red, e.g. the hat, vs. the coat, etc. and so on.",
        ),
        ("it is 3.5 m. it costs $4.20.", "It is 3.5 m. It costs $4.20."),
        ("1. image a: a dog", "1. Image a: a dog"),
        ("¿qué es? ¡un perro!", "¿Qué es? ¡Un perro!"),
        ("图像。cats", "图像。cats"),
        ("", ""),
    ],
)
def test_sentences_begin_with_a_capital_and_nothing_else_changes(text: str, expected: str) -> None:
    assert capitalize_sentences(text) == expected
