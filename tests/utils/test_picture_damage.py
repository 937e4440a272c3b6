"""Damage is found and named, and what only looks odd is read."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from utils.pictures import ImageError, read_picture, read_pixels

FORMATS = {
    "jpeg": ("JPEG", {"quality": 85}),
    "progressive": ("JPEG", {"quality": 85, "progressive": True}),
    "optimised": ("JPEG", {"quality": 85, "optimize": True}),
    "restarts": ("JPEG", {"quality": 85, "restart_marker_blocks": 8}),
    "grey": ("JPEG", {"quality": 85}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless": ("WEBP", {"lossless": True}),
}


def picture(width: int = 320, height: int = 240) -> PIL.Image.Image:
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 200, (12, 16, 3)), np.ones((20, 20, 1)))
    pixels = blocks + rng.integers(0, 50, blocks.shape)
    return PIL.Image.fromarray(pixels.astype(np.uint8)).resize((width, height))


def encoded(name: str, **more: object) -> bytes:
    format, options = FORMATS[name]
    buffer = io.BytesIO()
    picture().convert("L" if name == "grey" else "RGB").save(buffer, format, **options, **more)
    return buffer.getvalue()


def with_hole(whole: bytes, first: float, last: float) -> bytes:
    start, end = int(first * len(whole)), int(last * len(whole))
    return whole[:start] + bytes(end - start) + whole[end:]


def assert_refused(damaged: bytes, reason: str = "damaged|not an image") -> None:
    with pytest.raises(ImageError, match=reason):
        read_picture(damaged, "a.jpg")
    for least_side in (20, 10_000):
        with pytest.raises(ImageError, match=reason):
            read_pixels(damaged, "a.jpg", least_side)


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_file_is_read(name: str) -> None:
    assert read_picture(encoded(name), "a").size == (320, 240)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("cut", [1, 2, 10, 100, 1000, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(name: str, cut: float) -> None:
    whole = encoded(name)
    assert_refused(whole[: -int(cut if cut >= 1 else cut * len(whole))])


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if FORMATS[name][0] != "WEBP"]
)  # has no check sums
@pytest.mark.parametrize("hole", [(0, 1), (0, 0.05), (0.5, 0.6), (0.7, 1), (0.95, 1)])
def test_a_file_with_a_hole_is_refused(name: str, hole: tuple[float, float]) -> None:
    assert_refused(with_hole(encoded(name), *hole))


def test_one_wrong_bit_in_a_png_is_found() -> None:
    whole = bytearray(encoded("png"))
    whole[len(whole) // 2] ^= 1
    assert_refused(bytes(whole))


def test_a_few_bytes_too_many_are_harmless() -> None:
    whole = encoded("restarts")
    odd = whole[:-2] + b"\0\0" + whole[-2:]  # before the end marker, as some cameras write
    assert np.array_equal(read_picture(odd, "a"), read_picture(whole, "a"))
    for name in ("jpeg", "png", "webp"):
        whole = encoded(name)
        assert np.array_equal(read_picture(whole + b"appended" * 20, "a"), read_picture(whole, "a"))


def test_metadata_may_hold_zeros() -> None:
    exif = PIL.Image.Exif()
    exif[0x9286] = bytes(5000)  # user comment
    for name in ("jpeg", "png", "webp"):
        assert read_picture(encoded(name, exif=exif), "a").size == (320, 240)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255)])
def test_a_plain_surface_is_no_hole(format: str, colour: tuple[int, int, int]) -> None:
    for options in ({}, {"lossless": True}) if format == "WEBP" else ({"optimize": True},):
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (3000, 2000), colour).save(buffer, format, **options)
        assert read_picture(buffer.getvalue(), "a").size == (3000, 2000)


def bomb(width: int, height: int) -> bytes:
    """A PNG of some kB that claims to be large, and holds 4 MB of it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = zlib.compress(bytes(4_000_000))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_001, 10_000), (40_000, 40_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    assert_refused(bomb(*size), "scale the image down|not an image")


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (2010, 10)])
def test_lines_are_refused(size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size).save(buffer, "PNG")
    assert_refused(buffer.getvalue(), "one side more than 200 times the other; crop the image")


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError, match="the image cannot be read"):
        read_picture(tmp_path / "folder.jpg", "folder.jpg")
