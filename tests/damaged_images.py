"""Image files with damage of many kinds, and odd ones that are sound."""

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
import PIL.Image

NOT_IMAGES = {
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
FORMATS = {
    "jpeg": ("JPEG", {"quality": 85}),
    "progressive": ("JPEG", {"quality": 85, "progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "lzw": ("TIFF", {"compression": "tiff_lzw"}),
}
MORE_FORMATS = {
    "optimised": ("JPEG", {"quality": 85, "optimize": True}),
    "restarts": ("JPEG", {"quality": 85, "restart_marker_blocks": 8}),
    "grey": ("JPEG", {"quality": 85}),
    "lossless": ("WEBP", {"lossless": True}),
}


@cache
def picture() -> PIL.Image.Image:
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 200, (12, 16, 3)), np.ones((20, 20, 1)))
    return PIL.Image.fromarray((blocks + rng.integers(0, 50, blocks.shape)).astype(np.uint8))


def encoded(name: str, **more: Any) -> bytes:
    format, options = (FORMATS | MORE_FORMATS)[name]
    buffer = io.BytesIO()
    picture().convert("L" if name == "grey" else "RGB").save(buffer, format, **options, **more)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size, whatever it holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(min(height * (1 + 3 * width), 4_000_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def damaged_pictures(formats: dict[str, tuple[str, dict]] = FORMATS) -> dict[str, bytes]:
    """Files by what is wrong with them."""
    files = {f"is_{kind}": content for kind, content in NOT_IMAGES.items()}
    for name in formats:
        whole = encoded(name)
        for share in (0.03, 0.2, 0.5, 0.8, 0.97):
            files[f"{name}_cut_at_{share}"] = whole[: int(share * len(whole))]
        files[f"{name}_without_its_last_5_bytes"] = whole[:-5]
        files[f"{name}_all_zeros"] = bytes(len(whole))
        files[f"{name}_wrong_magic"] = b"XX" + whole[2:]
        if name not in ("webp", "lossless", "bmp", "tiff"):  # whose pixels may be anything
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
