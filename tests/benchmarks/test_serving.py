"""The benchmarks of chat, generation and evaluation print their tables, and count what the store spares."""

import pytest

from benchmarks import chat, evaluation, generate

pytestmark = pytest.mark.integration


def test_chat(printed):
    out = printed(chat, "--size", "tiny", "--images", "2")
    assert "kept, same dialogue: 0 images encoded, 0 image tokens" in out
    assert "again, causal: 2 images encoded, 512 image tokens" in out
    assert "times faster than again, dense as in 2023" in out


def test_generate(printed):
    out = printed(generate, "--size", "tiny", "--images", "1", "--contexts", "600", "--tokens", "2")
    assert "context 600" in out and "of what a large copy moves" in out


def test_evaluation_gives_the_same_answers_either_way(printed):
    flags = ("--pictures", "4", "--images", "2", "--questions", "3", "--tokens", "2")
    out = printed(evaluation, "--size", "tiny", *flags)
    assert "questions/s with the store" in out and "0 of 6 answers differ" in out
