"""The benchmarks of chat, generation and evaluation print their tables, and count what the store spares."""

import sys
from collections.abc import Iterator

import pytest
import torch

from benchmarks import chat, evaluation, generate

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def printed(benchmark, capsys, monkeypatch, *flags: str) -> str:
    monkeypatch.setattr(sys, "argv", [benchmark.__file__, "--size", "tiny", "--rounds", "1", *flags])
    benchmark.main()
    return capsys.readouterr().out


def test_chat(capsys, monkeypatch):
    out = printed(chat, capsys, monkeypatch, "--images", "2")
    assert "kept, same dialogue: 0 images encoded, 0 image tokens" in out
    assert "again, causal: 2 images encoded, 512 image tokens" in out
    assert "times faster than again, dense as in 2023" in out


def test_generate(capsys, monkeypatch):
    out = printed(generate, capsys, monkeypatch, "--images", "1", "--contexts", "600", "--tokens", "2")
    assert "context 600" in out and "of what a large copy moves" in out


def test_evaluation_gives_the_same_answers_either_way(capsys, monkeypatch):
    flags = ("--pictures", "4", "--images", "2", "--questions", "3", "--tokens", "2")
    out = printed(evaluation, capsys, monkeypatch, *flags)
    assert "questions/s with the store" in out and "0 of 6 answers differ" in out
