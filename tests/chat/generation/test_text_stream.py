"""Streams of text from tokens."""

import pytest

from chat.generation.decoding import TextStream
from tests.chat.conftest import decoded_answer


@pytest.mark.parametrize(
    "text", ["red", "two red circles, left of image 2", "naïve café 😀 日本", "line\n\nline", "x" * 40]
)
def test_pieces_joined_are_the_text(model_and_processor, text):
    tokenizer = model_and_processor[1].tokenizer
    ids = tokenizer.encode(f" {text} ", add_special_tokens=False)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == stream.text == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert sum(map(bool, pieces)) > 1 or len(ids) < 4


def test_half_a_character_is_shown_as_such_and_special_tokens_are_not_text(model_and_processor):
    tokenizer = model_and_processor[1].tokenizer
    ids = tokenizer.encode("ab😀", add_special_tokens=False)
    half = [tokenizer.bos_token_id, *ids[:-1], tokenizer.eos_token_id]
    assert decoded_answer(half, tokenizer).startswith("ab\N{REPLACEMENT CHARACTER}")
