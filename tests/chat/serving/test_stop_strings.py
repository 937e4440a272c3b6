"""Stop strings, however the answer is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.serving.engine import StopStrings


def passed_on(pieces: list[str], stops: list[str]) -> str:
    found, said = StopStrings(stops), ""
    for piece in pieces:
        said += found.push(piece)
        if found.found:
            return said
    return said + found.finish()


@pytest.mark.parametrize(
    "pieces, stops, expected",
    [
        (["one two"], [], "one two"),
        (["one", " tw", "o"], ["two"], "one "),
        (["one", " tw", "ice"], ["two"], "one twice"),
        (["aab"], ["ab", "b"], "a"),
        (["a", "a", "b"], ["aab"], ""),
        (["ends with tw"], ["two"], "ends with tw"),
    ],
)
def test_by_hand(pieces, stops, expected):
    assert passed_on(pieces, stops) == expected


@given(st.lists(st.text("ab", max_size=3), max_size=8), st.text("ab", min_size=1, max_size=4))
def test_pieces_do_not_matter(pieces, stop):
    whole = "".join(pieces)
    assert passed_on(pieces, [stop]) == whole.partition(stop)[0]
