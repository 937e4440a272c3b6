"""Stop strings, however the answer is cut into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from chat.serving.engine import StopStrings


@given(
    st.lists(st.text("ab", max_size=3), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=2),
)
def test_an_answer_ends_at_the_first_that_is_complete(pieces, stops):
    found, said, whole = StopStrings(stops), "", ""
    for piece in pieces:
        whole += piece
        said += found.push(piece)
        if found.found:
            break
    said += found.finish()
    places = [place for stop in stops if (place := whole.find(stop)) >= 0]
    assert found.found == bool(places) and said == whole[: min(places, default=len(whole))]
