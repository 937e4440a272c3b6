"""Data with damage of many kinds, each beside what has to be said of it."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.damaged_images import damaged_pictures, encoded, odd_but_sound_pictures

IMAGES = Path("coco/train2017")


def turns(*texts: str) -> list[dict[str, str]]:
    return [
        {"from": "human" if number % 2 == 0 else "gpt", "value": text} for number, text in enumerate(texts)
    ]


def damaged_records() -> list[tuple[str, Any]]:
    """Records for LLaVA's conversations, each after a piece of what is to be said of it."""
    question, answer = "<image>\nWhat is it?", "A circle."
    shown = {"image": "good.jpg"}
    return [
        ("not a record", None),
        ("not a record", 7),
        ("not a record", "a text"),
        ("not a record", [1, 2]),
        ("not in the format", {}),
        ("not in the format", {**shown}),
        ("not in the format", {**shown, "conversations": None}),
        ("not in the format", {**shown, "conversations": 3}),
        ("no message", {**shown, "conversations": []}),
        ("not in the format", {**shown, "conversations": ["What is it?", "A circle."]}),
        ("expected human and gpt", {**shown, "conversations": turns(question)}),
        (
            "expected human and gpt",
            {**shown, "conversations": turns(question, answer) + turns("", "Two.")[1:]},
        ),
        ("expected human and gpt", {**shown, "conversations": turns(question, answer)[::-1]}),
        ("expected human and gpt", {**shown, "conversations": [{"from": "bot", "value": answer}] * 2}),
        ("not in the format", {**shown, "conversations": [{"from": "human"}, {"from": "gpt"}]}),
        ("not in the format", {**shown, "conversations": turns(question, None)}),
        ("not in the format", {**shown, "conversations": turns(question, 5)}),
        ("the question of turn 1 is empty", {**shown, "conversations": turns("<image>", answer)}),
        ("the answer of turn 1 is empty", {**shown, "conversations": turns(question, " \n")}),
        ("the answer of turn 2 is empty", {**shown, "conversations": turns(question, answer, "Why?", "")}),
        ("lists 1 images, but its questions hold 0", {**shown, "conversations": turns("What?", answer)}),
        ("lists 1 images, but its questions hold 2", {**shown, "conversations": turns(question * 2, answer)}),
        ("lists 0 images, but its questions hold 1", {"conversations": turns(question, answer)}),
        ("not in the format", {"image": 12, "conversations": turns(question, answer)}),
        ("not in the format", {"image": [None], "conversations": turns(question, answer)}),
        ("lists 0 images, but its questions hold 1", {"image": "", "conversations": turns(question, answer)}),
        ("there is no such image file", {"image": "nowhere.jpg", "conversations": turns(question, answer)}),
        ("image is damaged", {"image": "null\0.jpg", "conversations": turns(question, answer)}),
        ("cannot be read", {"image": "long" * 200, "conversations": turns(question, answer)}),
        ("contains '</s>'", {**shown, "conversations": turns(question, "A circle.</s>")}),
        ("contains '<s>'", {**shown, "conversations": turns(question + " <s>", answer)}),
        ("half a character", {**shown, "conversations": turns(question, "A circle \ud83d.")}),
        ("its first turn takes", {**shown, "conversations": turns(question + " Why?" * 400, answer)}),
    ]


BROKEN_LINES = [
    (1, "not valid JSON", b'{"messages": [{"role": "user", "content": "Why"'),
    (3, "not a record", b"12"),
    (4, "expected", b'{"messages": [{"role": "assistant", "content": "No question."}]}'),
]
"""Lines of own data that are damaged: place, what is said, what stands there."""

_SAID = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
_WHOLE = json.dumps([{"messages": _SAID}] * 2).encode()
_PARQUET = io.BytesIO()
pq.write_table(pa.Table.from_pylist([{"messages": _SAID}]), _PARQUET)

BROKEN_FILES = {
    "truncated.json": ("ends inside", b'[{"messages": [{"role": "user", "content": "What'),
    "cut.jsonl": ("none of them a record", _WHOLE[1:60]),
    "cut.parquet": ("not a valid parquet file", _PARQUET.getvalue()[:-50]),
    "empty.json": ("is empty", b""),
    "empty.jsonl": ("is empty", b""),
    "empty.parquet": ("not a valid parquet file", b""),
    "zeros.json": ("full of zero bytes", bytes(4096)),
    "page.json": ("a web page", b"<!doctype html><title>404 Not Found</title>"),
    "pointer.jsonl": ("git lfs pull", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
    "packed.json": ("gunzip", gzip.compress(_WHOLE)),
    "picture.json": ("a JPEG picture", encoded("jpeg")),
    "numbers.json": ("none of them a record", b"[1, 2, 3]"),
}
"""Annotation files that cannot be read at all: what is said, what is in them.

tests/utils/data/readers/test_annotations.py has more.
"""


@dataclass(frozen=True)
class Damage:
    """A data folder, and what is wrong in it: dataset, file, index (None: the file) and a piece of the reason."""

    root: Path
    names: list[str]
    expected: list[tuple[str, str, int | None, str]] = field(default_factory=list)
    records: int = 0


@pytest.fixture(scope="session")
def damage(tmp_path_factory: pytest.TempPathFactory) -> Damage:
    """Damaged images in llava, damaged records in llava_dial and own data, and damaged files; among sound ones."""
    return write_damage(tmp_path_factory.mktemp("damage"))


def write_damage(root: Path) -> Damage:
    (root / IMAGES).mkdir(parents=True)
    (root / "llava").mkdir()
    (root / IMAGES / "good.jpg").write_bytes(encoded("jpeg"))
    expected: list[tuple[str, str, int | None, str]] = []

    def record(name: str) -> dict[str, Any]:
        return {"image": name, "conversations": turns("What is it?\n<image>", "A circle.")}

    pictures = []
    for number, (kind, content) in enumerate(damaged_pictures().items()):
        if number % 4 == 0:
            pictures.append(record("good.jpg"))
        (root / IMAGES / f"{kind}.jpg").write_bytes(content)
        expected.append(("llava", "llava/detail_23k.json", len(pictures), f"{kind}.jpg: "))
        pictures.append(record(f"{kind}.jpg"))
    (root / IMAGES / "folder.jpg").mkdir()
    (root / IMAGES / "loop.jpg").symlink_to("loop.jpg")
    (root / IMAGES / "dangling.jpg").symlink_to("nowhere.jpg")
    for name in ("folder.jpg", "loop.jpg", "dangling.jpg", "missing.jpg"):
        expected.append(("llava", "llava/detail_23k.json", len(pictures), f"{name}: "))
        pictures.append(record(name))
    assert len(expected) == 100, len(expected)

    sound = []
    for kind, content in odd_but_sound_pictures().items():
        (root / IMAGES / f"sound_{kind}.jpg").write_bytes(content)
        sound.append(record(f"sound_{kind}.jpg"))

    dialogues = []
    for reason, fields in damaged_records():
        dialogues.append({"image": "good.jpg", **record("good.jpg")})
        expected.append(("llava_dial", "llava/conversation_58k.json", len(dialogues), reason))
        dialogues.append(fields)
    own = [json.dumps({"messages": _SAID}).encode()] * 6
    for place, reason, content in BROKEN_LINES:
        own[place] = content
        expected.append(("own.jsonl", "own.jsonl", place, reason))
    for name, (reason, content) in BROKEN_FILES.items():
        (root / name).write_bytes(content)
        expected.append((name, name, None, reason))

    (root / "own.jsonl").write_bytes(b"\n".join(own) + b"\n")
    for name, records in (
        ("detail_23k", pictures),
        ("complex_reasoning_77k", sound),
        ("conversation_58k", dialogues),
    ):
        (root / "llava" / f"{name}.json").write_text(json.dumps(records))
    names = ["llava", "llava_dial", *(str(root / name) for name in ("own.jsonl", *BROKEN_FILES))]
    total = len(pictures) + len(sound) + len(dialogues) + len(own)
    return Damage(root, names, expected, total)
