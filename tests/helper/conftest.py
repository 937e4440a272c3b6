"""Data with damage of many kinds, each beside what has to be said of it."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

IMAGES = Path("coco/train2017")
_NOT_PICTURES = {
    "html": b"<!doctype html><title>404 Not Found</title>",
    "json": b'{"error": "rate limit"}',
    "text": b"a red circle",
    "utf16": "a red circle".encode("utf-16"),
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "zip": b"PK\x03\x04" + bytes(30),
    "video": b"\0\0\0\x20ftypisom" + bytes(40),
    "xml": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "one_byte": b"\xff",
    "no_byte": b"",
    "spaces": b" " * 4096,
    "noise": np.random.default_rng(1).bytes(5000),
}
_FORMATS = {
    "jpeg": ("JPEG", {"quality": 85}),
    "progressive": ("JPEG", {"quality": 85, "progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "lzw": ("TIFF", {"compression": "tiff_lzw"}),
}


def picture() -> PIL.Image.Image:
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 200, (9, 12, 3)), np.ones((10, 10, 1)))
    return PIL.Image.fromarray((blocks + rng.integers(0, 50, blocks.shape)).astype(np.uint8))


def encoded(name: str) -> bytes:
    format, options = _FORMATS[name]
    buffer = io.BytesIO()
    picture().save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size, whatever it holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(min(height * (1 + 3 * width), 4_000_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def damaged_pictures() -> dict[str, bytes]:
    """Files by what is wrong with them."""
    files = {f"is_{kind}": content for kind, content in _NOT_PICTURES.items()}
    for name in _FORMATS:
        whole = encoded(name)
        for share in (0.03, 0.2, 0.5, 0.8, 0.97):
            files[f"{name}_cut_at_{share}"] = whole[: int(share * len(whole))]
        files[f"{name}_without_its_last_5_bytes"] = whole[:-5]
        files[f"{name}_all_zeros"] = bytes(len(whole))
        files[f"{name}_wrong_magic"] = b"XX" + whole[2:]
        if name not in ("webp", "bmp", "tiff"):  # whose pixels may be anything
            middle, length = len(whole) // 2, max(len(whole) // 10, 400)
            files[f"{name}_with_a_hole"] = whole[:middle] + bytes(length) + whole[middle + length :]
            files[f"{name}_with_a_tail_of_zeros"] = whole[: len(whole) // 2].ljust(len(whole), b"\0")
    for name in ("jpeg", "png", "gif", "webp"):
        files[f"{name}_of_which_12_bytes_came"] = encoded(name)[:12]
    files["bomb"] = png(30_000, 30_000)
    files["huge_bomb"] = png(2**31 - 1, 2**31 - 1)
    files["line"] = png(60_000, 1)
    files["column"] = png(1, 60_000)
    wrong_bit = bytearray(encoded("png"))
    wrong_bit[len(wrong_bit) // 2] ^= 1
    files["png_with_a_wrong_bit"] = bytes(wrong_bit)
    return files


def odd_but_sound_pictures() -> dict[str, bytes]:
    """Files that have to be read."""

    def saved(image: PIL.Image.Image, format: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    small = picture()
    frames = [small, small.transpose(PIL.Image.Transpose.ROTATE_180)]
    return {
        "bits": saved(small.convert("1"), "PNG"),
        "grey": saved(small.convert("L"), "JPEG"),
        "grey_alpha": saved(small.convert("LA"), "PNG"),
        "palette": saved(small.convert("P"), "PNG", transparency=0),
        "alpha": saved(small.convert("RGBA"), "PNG"),
        "inks": saved(small.convert("CMYK"), "JPEG"),
        "16_bits": saved(PIL.Image.fromarray(np.full((20, 30), 40_000, np.uint16)), "PNG"),
        "floats": saved(small.convert("F"), "TIFF"),
        "turned": saved(small, "JPEG", exif=exif),
        "animated": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "one_pixel": saved(small.resize((1, 1)), "PNG"),
        "appended": encoded("jpeg") + b"appended" * 100,
        "progressive": encoded("progressive"),
        "webp": encoded("webp"),
    }


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
    "cut_after_a_record.json": ("cut off", _WHOLE[:-1]),
    "cut_after_a_comma.json": ("the file ends", b'[{"messages": []},'),
    "cut_after_a_key.json": ("cut off", b'{"a": {"messages": []}, "b"'),
    "cut_in_a_character.json": ("not UTF-8", '[{"messages": "é'.encode()[:-1]),
    "cut.jsonl": ("none of them a record", _WHOLE[1:60]),
    "cut.parquet": ("not a valid parquet file", _PARQUET.getvalue()[:-50]),
    "empty.json": ("is empty", b""),
    "empty.jsonl": ("is empty", b""),
    "empty.parquet": ("not a valid parquet file", b""),
    "spaces.json": ("is empty", b" \n\t "),
    "mark.json": ("is empty", b"\xef\xbb\xbf"),
    "zeros.json": ("full of zero bytes", bytes(4096)),
    "zeros.parquet": ("not a valid parquet file", bytes(4096)),
    "zeros_at_the_end.json": ("Expecting value", _WHOLE[:-1] + b", " + bytes(4096)),
    "page.json": ("a web page", b"<!doctype html><title>404 Not Found</title>"),
    "pointer.jsonl": ("git lfs pull", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
    "packed.json": ("gunzip", gzip.compress(_WHOLE)),
    "packed.jsonl": ("unzip", b"PK\x03\x04" + bytes(30)),
    "xz.json": ("unxz", lzma.compress(_WHOLE)),
    "zstd.json": ("unzstd", b"\x28\xb5\x2f\xfd" + bytes(30)),
    "picture.json": ("a JPEG picture", encoded("jpeg")),
    "table.json": ("name it .parquet", _PARQUET.getvalue()),
    "text.parquet": ("not a valid parquet file", _WHOLE),
    "utf16.json": ("UTF-16", _WHOLE.decode().encode("utf-16")),
    "latin1.json": ("not UTF-8", '[{"messages": "é"}]'.encode("latin-1")),
    "text_behind.json": ("something follows", _WHOLE + b" garbage"),
    "two_lists.json": ("something follows", _WHOLE * 2),
    "lines.json": (".jsonl", b'{"a": {}}\n{"b": {}}'),
    "comma_too_many.json": ("damaged at byte", b'[{"messages": []},]'),
    "comma_missing.json": ("expected , or ]", b"[{} {}]"),
    "colon_missing.json": ("':' delimiter", b'[{"messages" []}]'),
    "no_quotes.json": ("double quotes", b"[{messages: []}]"),
    "single_quotes.json": ("double quotes", b"[{'messages': []}]"),
    "python.json": ("Expecting value", b'[{"image": None}]'),
    "comment.json": ("Expecting value", b'[{"a": 1}, // two\n {"a": 2}]'),
    "escape.json": ("escape", b'[{"a": "\\x41"}]'),
    "deep.json": ("nested too deeply", b"[" + b"[" * 200_000 + b"]" * 200_001),
    "numbers.json": ("none of them a record", b"[1, 2, 3]"),
    "word.json": ("expected a list of records", b"null"),
}
"""Annotation files that cannot be read at all: what is said, what is in them."""


@dataclass(frozen=True)
class Damage:
    """A data folder, and what is wrong in it: dataset, file, index (None: the file) and a piece of the reason."""

    root: Path
    names: list[str]
    expected: list[tuple[str, str, int | None, str]] = field(default_factory=list)
    records: int = 0


@pytest.fixture(scope="session")
def damage(tmp_path_factory: pytest.TempPathFactory) -> Damage:
    """100 damaged pictures, in llava, 36 damaged records, in llava_dial and own data, and 40 damaged files; among
    sound ones.
    """
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
    assert len(BROKEN_FILES) == 40 and len(expected) == 176, (len(BROKEN_FILES), len(expected))

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
