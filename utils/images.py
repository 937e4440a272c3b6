"""Reading images: upright and in RGB whatever the file holds, damage found and named, JPEGs at a fraction; and the
forms in which data files and requests hold their encoded bytes (`image_bytes`): raw, base64, data URLs.

All that training, chat, server and evaluation show the model is read here, and looks as an image processor of
transformers would see the file: transparency is put on white. Two things are better than that: EXIF's orientation
is applied, and greys of more than 8 bits are scaled, where the processor cuts them off at 255.

A JPEG is decoded by simplejpeg where its pixels are asked for, which spares the copies that Pillow makes on the
way; both stand on libjpeg-turbo and agree bit for bit. Most of the time goes into the entropy decoding; only the
rest (inverse cosine transform, colours) shrinks with the fraction. Without simplejpeg Pillow does all of it.

Damage that Pillow passes over is found here: it does not look at a PNG's check sums, and libjpeg only warns, unheard,
where it has to make up pixels. GIF, WebP, BMP and TIFF have no check sums: bytes that were overwritten inside their
pixels show only where decoding fails.
"""

import base64
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import unquote

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

try:
    import simplejpeg
except ImportError:  # optional: without it, a hole inside a JPEG goes unnoticed
    simplejpeg = None

MAX_PIXELS = 100_000_000
"""Images with more pixels are refused: they are mistakes or decompression bombs, and would fill the memory."""

MAX_ASPECT = 200
"""Images with a side so many times longer than the other are refused: scaled up, a line of pixels would fill memory."""

_FRACTIONS = (8, 4, 2)  # those that the inverse cosine transform does quickly
_ON_ITS_SIDE = (5, 6, 7, 8)  # values of EXIF's orientation
_WITH_ALPHA = ("LA", "PA", "RGBA")
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_SIXTEEN_BITS = (("I", "PNG"), ("I", "PPM"))  # modes and formats of 16-bit greys that Pillow calls 32-bit
_START_OF_SCAN, _METADATA = 0xDA, 0xE1  # the kinds of a JPEG's segments: the coded picture; EXIF or XMP
_OTHER_KINDS = {
    rb"(?s)....ftypavi[fs]": f": AVIF, for which Pillow {PIL.__version__} has no decoder; install Pillow 11.3 or later",
    rb"(?s)....ftyp(hei|hev|mif)": ": HEIC, as phones save it; convert it to JPEG",
    rb"\s*(<\?xml[^>]*>\s*)?<svg": ": an SVG drawing; convert it to PNG",
    rb"\s*<": ": a web page or XML, usually an error message saved under the image's name; fetch it again",
    rb"version https://git-lfs": ": a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
}
"""What is found under an image's name and no image that is read, by how it begins."""

_PNG_START = b"\x89PNG\r\n\x1a\n"
_SURPLUS = re.compile(r"(\d+) extraneous bytes")
_HARMLESS_SURPLUS = 64
"""Bytes of no use that some cameras and programs leave before a marker; a decoder that lost its way leaves more."""


class ImageError(ValueError):
    """An image that cannot be read; the message names its file and the reason."""


@runtime_checkable
class EncodedPicture(Protocol):
    """A picture kept somewhere else than in a file of its own: `read` gives the encoded bytes of one."""

    def read(self) -> bytes: ...


Source = str | Path | bytes | EncodedPicture | PIL.Image.Image
"""A file's path, the encoded bytes of a file, something that reads them when asked, or a PIL image."""


def read_picture(source: Source, name: str) -> PIL.Image.Image:
    """The image upright (EXIF orientation applied), mode RGB, transparency put on white, deep greys scaled.

    Raises `ImageError` for a file that is missing, unreadable, truncated or larger than `MAX_PIXELS`.
    """
    with _named_errors(name):
        if isinstance(source, PIL.Image.Image):
            return _upright_rgb(_accepted(source, name), name).copy()
        encoded = _encoded(source)
        opened = _opened(encoded, name)
        upright = _upright_rgb(opened, name)
        _refuse_lost_data(encoded, opened.format)
        return upright


def read_pixels(source: Source, name: str, least_side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The same as RGB [H, W, 3] uint8, and the picture's full width and height.

    A JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of its size at which no side is shorter than
    `least_side`, rounded up; one that has to be turned only where nothing is to be rounded.
    """
    with _named_errors(name):
        if isinstance(source, PIL.Image.Image):
            upright = _upright_rgb(_accepted(source, name), name)
            return np.array(upright), upright.size
        encoded = _encoded(source)
        size = _size_of_plain_jpeg(encoded)
        if size is not None:
            _accept(size, name)
            pixels = _decoded(encoded, size, _divisor(size, least_side))
            if pixels is not None:
                return pixels, size
        opened = _opened(encoded, name)
        size = None
        if opened.format == "JPEG" and opened.mode in ("RGB", "L"):
            orientation = _orientation(opened)
            size = opened.size[::-1] if orientation in _ON_ITS_SIDE else opened.size
            divisor = _divisor(size, least_side, exact=orientation != 1)
            opened.draft(None, (opened.width // divisor, opened.height // divisor))
        upright = _upright_rgb(opened, name)
        _refuse_lost_data(encoded, opened.format)
        return np.array(upright), size or upright.size


def read_size(source: Source, name: str) -> tuple[int, int]:
    """The picture's width and height, upright, from the file's header alone; raises as `read_picture` does.

    What is damaged behind the header is not found.
    """
    with _named_errors(name):
        if isinstance(source, PIL.Image.Image):
            return _upright_size(_accepted(source, name))
        file = source if isinstance(source, str | Path) else io.BytesIO(_encoded(source))
        try:
            with PIL.Image.open(file) as opened:
                return _upright_size(_accepted(opened, name))
        except PIL.UnidentifiedImageError:
            return _upright_size(_opened(_encoded(source), name))  # says what it is instead


def _upright_size(picture: PIL.Image.Image) -> tuple[int, int]:
    if picture.format == "TIFF":
        picture.load()  # by which it is turned
    return picture.size[::-1] if _orientation(picture) in _ON_ITS_SIDE else picture.size


def encoded_bytes(source: str | Path | bytes | EncodedPicture, name: str) -> bytes:
    """A picture's bytes as they are kept, not decoded; raises `ImageError` where they cannot be read."""
    with _named_errors(name):
        return _encoded(source)


def _encoded(source: str | Path | bytes | EncodedPicture) -> bytes:
    if isinstance(source, EncodedPicture):
        return source.read()
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _opened(encoded: bytes, name: str) -> PIL.Image.Image:
    """The image with its size known and its pixels not yet decoded."""
    try:
        return _accepted(PIL.Image.open(io.BytesIO(encoded)), name)
    except PIL.UnidentifiedImageError as error:
        kind = next((each for start, each in _OTHER_KINDS.items() if re.match(start, encoded)), None)
        raise ImageError(
            f"{name}: not an image, or of a format that Pillow does not read{kind or ''}"
        ) from error


def _accepted(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    _accept(picture.size, name)
    return picture


def _accept(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height} pixels, more than the {MAX_PIXELS:,} that are accepted; scale the image"
            " down"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise ImageError(
            f"{name}: {width} x {height} pixels, one side more than {MAX_ASPECT} times the other; crop the image"
        )


def _size_of_plain_jpeg(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG in colours or greys without metadata, which might turn it; of all else None."""
    if simplejpeg is None:
        return None
    place = 2
    while encoded[place : place + 1] == b"\xff" and encoded[place + 1] != _START_OF_SCAN:
        if encoded[place + 1] == _METADATA:
            return None
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    return (width, height) if colours in ("YCbCr", "RGB", "Gray") else None


def _divisor(size: tuple[int, int], least_side: int, exact: bool = False) -> int:
    """`exact`: no last column or row may stand for less than a whole one, for turned it would be the first."""
    for divisor in _FRACTIONS:
        if min(size) >= divisor * least_side and not (exact and any(side % divisor for side in size)):
            return divisor
    return 1


def _decoded(encoded: bytes, size: tuple[int, int], divisor: int) -> np.ndarray | None:
    """The pixels of a JPEG; None where the decoder finds fault with it but lost nothing: Pillow is to judge."""
    assert simplejpeg is not None, "it has told the size"
    least_width, least_height = (-(-side // divisor) for side in size)
    try:
        return simplejpeg.decode_jpeg(
            encoded, min_height=least_height, min_width=least_width, min_factor=divisor
        )
    except ValueError as error:
        _refuse_lost_pixels(str(error))
        return None


def _orientation(picture: PIL.Image.Image) -> int:
    return picture.getexif().get(PIL.ExifTags.Base.Orientation, 1)


def _upright_rgb(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    picture.load()  # by which a TIFF is turned already
    sixteen_bits = picture.mode.startswith("I;16") or (picture.mode, picture.format) in _SIXTEEN_BITS
    if _orientation(picture) != 1:
        picture = PIL.ImageOps.exif_transpose(picture)
    if sixteen_bits or picture.mode in ("I", "F"):
        return _eight_bits(picture, sixteen_bits, name).convert("RGB")
    if picture.mode in _PREMULTIPLIED:
        picture = picture.convert(_PREMULTIPLIED[picture.mode])
    if picture.mode in _WITH_ALPHA or picture.info.get("transparency") is not None:
        white = PIL.Image.new("RGBA", picture.size, "white")
        picture = PIL.Image.alpha_composite(white, picture.convert("RGBA"))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _eight_bits(picture: PIL.Image.Image, sixteen_bits: bool, name: str) -> PIL.Image.Image:
    """Greys of 16 or 32 bits, or of floats, as mode L: scaled by what is white in them, not cut off.

    Of 16 bits white is 65,535. Others do not say: it is the least of 1 (of floats), 255 and 65,535 that no pixel
    exceeds. Raises `ImageError` where there is none, and for a pixel that is less than black.
    """
    values = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    whites = (65535,) if sixteen_bits else (1, 255, 65535) if picture.mode == "F" else (255, 65535)
    white = next((each for each in whites if high <= each), None)
    if white is None or low < 0:
        raise ImageError(
            f"{name}: its grey values (Pillow mode {picture.mode}) range from {low:g} to {high:g}, so black and white"
            " are unknown; save it with 8 or 16 bits"
        )
    scaled = values if white == 255 else np.rint(values * np.float32(255 / white))
    clear = picture.info.get("transparency")  # the grey that stands for nothing
    scaled = scaled if clear is None else np.where(values == clear, 255, scaled)
    return PIL.Image.fromarray(scaled.astype(np.uint8))


def _refuse_lost_data(encoded: bytes, format: str | None) -> None:
    """Raise `ValueError` where a file of Pillow's `format` has lost some of its picture."""
    if format in ("JPEG", "MPO") and simplejpeg is not None:
        try:
            # At an eighth: mostly entropy decoding.
            simplejpeg.decode_jpeg(encoded, min_height=1, min_width=1, min_factor=8)
        except ValueError as error:
            _refuse_lost_pixels(str(error))
    elif format == "PNG":
        _refuse_broken_chunks(encoded)


def _refuse_lost_pixels(complaint: str) -> None:
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


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, and sizes for which we have our own limit
            yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: there is no such image file") from error
    except PIL.Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        claimed = f"{int(pixels[0]):,} pixels" if pixels else "its size"
        raise ImageError(
            f"{name}: {claimed}, more than the {MAX_PIXELS:,} that are accepted; scale the image down"
        ) from error
    except OSError as error:
        if error.errno is None:  # Pillow's own
            raise ImageError(f"{name}: the image is damaged ({error})") from error
        raise ImageError(f"{name}: the image cannot be read ({error.strerror})") from error
    except Exception as error:  # Pillow's forty decoders report damage in as many ways
        raise ImageError(f"{name}: the image is damaged ({error})") from error


_DATA_URL = re.compile(r"data:([^,]{0,200}),", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")
_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}

_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+=*\s*")
_SHORTEST_IMAGE = 32  # characters of base64: no format has a smaller header
_SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0\0\0\0|II\*\0|MM\0\*|.{4}ftyp", re.DOTALL
)
"""How files begin: JPEG, PNG, GIF, WebP, BMP, TIFF of both byte orders, AVIF and HEIF."""


def image_bytes(value: Any) -> bytes:
    """The bytes of an image's file; whether they are an image is not looked at.

    Args:
        value: base64 text, in the usual or the URL-safe alphabet, with or without padding, line breaks or a
            data URL's beginning (`data:image/jpeg;base64,`); the bytes themselves; or the object
            `{"bytes": ...}` in which `datasets` keeps images.

    Raises `ValueError` with the reason where it is none of these.
    """
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        encoded = value
    elif isinstance(value, str):
        encoded = _from_base64(value)
    else:
        raise ValueError(f"it is {_KINDS.get(type(value), type(value).__name__)}, not base64 text")
    if not encoded:
        raise ValueError("it is empty")
    return encoded


def is_image_text(text: str) -> bool:
    """Whether a text that may also be a path is an image itself: a data URL, or base64 of an image's file."""
    if is_data_url(text):
        return True
    if len(text) < _SHORTEST_IMAGE or not _BASE64.fullmatch(text):
        return False
    beginning = "".join(text[:64].split())[:24].rstrip("=")
    return _SIGNATURES.match(_from_base64(beginning[: len(beginning) // 4 * 4])) is not None


def is_data_url(text: str) -> bool:
    """Whether a text is a data URL (RFC 2397), whatever it carries."""
    return text[:5].lower() == "data:"


def shortened(text: str, most: int = 300) -> str:
    """A text that a message quotes, its middle left out where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    part = most // 3
    return f"{text[:part]}...({len(text):,} characters)...{text[-part:]}"


def _from_base64(text: str) -> bytes:
    if is_data_url(text):
        url = _DATA_URL.match(text)
        if url is None or not url[1].rstrip().lower().endswith(";base64"):
            raise ValueError("it is not base64: a data URL of an image starts data:image/png;base64,")
        text = text[url.end() :]
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        pass  # the rarer forms, at some cost
    text = unquote(text) if "%" in text else text
    compact = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"it is not valid base64 ({error})") from error
