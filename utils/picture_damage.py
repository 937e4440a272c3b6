"""Damage that Pillow passes over: a hole in a JPEG that decodes to grey, a PNG that was never checked or never ends.

Pillow finds files that are too short, and most broken streams. It does not look at a PNG's check sums, and libjpeg
only warns, unheard, where it has to make up pixels. GIF, WebP, BMP and TIFF have no check sums: bytes that were
overwritten inside their pixels show only where decoding fails.
"""

import re
import struct
import zlib

try:
    import simplejpeg
except ImportError:  # optional: without it, a hole inside a JPEG goes unnoticed
    simplejpeg = None

_PNG_START = b"\x89PNG\r\n\x1a\n"
_SURPLUS = re.compile(r"(\d+) extraneous bytes")
_HARMLESS_SURPLUS = 64
"""Bytes of no use that some cameras and programs leave before a marker; a decoder that lost its way leaves more."""


def refuse_lost_data(encoded: bytes, format: str | None) -> None:
    """Raise `ValueError` where a file of Pillow's `format` has lost some of its picture."""
    if format in ("JPEG", "MPO") and simplejpeg is not None:
        try:
            simplejpeg.decode_jpeg(
                encoded, min_height=1, min_width=1, min_factor=8
            )  # mostly entropy decoding
        except ValueError as error:
            refuse_lost_pixels(str(error))
    elif format == "PNG":
        _refuse_broken_chunks(encoded)


def refuse_lost_pixels(complaint: str) -> None:
    """Raise `ValueError` where libjpeg's `complaint` says that it made up pixels; others are for Pillow to judge."""
    surplus = _SURPLUS.search(complaint)
    if surplus is not None and int(surplus[1]) <= _HARMLESS_SURPLUS:
        return
    if "Premature end" in complaint or "Corrupt JPEG data" in complaint:
        raise ValueError(complaint)


def _refuse_broken_chunks(encoded: bytes) -> None:
    """A PNG is a list of chunks, each with its check sum, of which the last is IEND (its specification, 5.3)."""
    place, kind = len(_PNG_START), b""
    while kind != b"IEND":
        if place + 12 > len(encoded):
            raise ValueError("the file ends before the picture does")
        length, kind = struct.unpack_from(">I4s", encoded, place)
        last = place + 8 + length
        if last + 4 > len(encoded):
            raise ValueError("the file ends before the picture does")
        (check_sum,) = struct.unpack_from(">I", encoded, last)
        if zlib.crc32(memoryview(encoded)[place + 4 : last]) != check_sum:
            raise ValueError(f"the check sum of its part {kind.decode('latin-1')!r} is wrong")
        place = last + 4
