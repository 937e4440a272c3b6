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


def test_half_a_character_at_the_end_is_shown_as_such(model_and_processor):
    tokenizer = model_and_processor[1].tokenizer
    ids = tokenizer.encode("ab😀", add_special_tokens=False)
    assert decoded_answer(ids[:-1], tokenizer).startswith("ab\N{REPLACEMENT CHARACTER}")


def test_special_tokens_are_not_text(model_and_processor):
    tokenizer = model_and_processor[1].tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer.encode("red", add_special_tokens=False), tokenizer.eos_token_id]
    assert decoded_answer(ids, tokenizer) == "red"
