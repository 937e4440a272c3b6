"""An image looks to the model as transformers' own processor sees the upright file: formats x modes x orientations."""

import io

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin
import pytest
import torch
from transformers import CLIPImageProcessor, SiglipImageProcessor

from chat.images import open_image
from utils import images as images_module
from utils.conversation import Image, ImageError
from utils.model.image_preprocessing import preprocess

pytestmark = pytest.mark.integration

SIZE = (60, 44)  # width and height
ALL_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "PA")
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ALL_MODES,
    "TGA": ("L", "LA", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
    **({"AVIF": ("L", "RGB", "RGBA")} if PIL.features.check("avif") else {}),
    **({"JPEG2000": ("L", "LA", "RGB", "RGBA")} if PIL.features.check("jpg_2000") else {}),
}
WITH_EXIF = ("PNG", "JPEG", "WEBP", "TIFF", *(("AVIF",) if "AVIF" in MODES else ()))
CLEAR = {"P": (3, bytes([255, 128, 0, 40] * 64)), "L": (77,), "RGB": ((10, 20, 30),), "1": (0,)}
"""PNG's other transparency: colours that stand for nothing, or, of a palette, how much they do."""
PROCESSORS = (
    CLIPImageProcessor(),
    SiglipImageProcessor(size={"height": 224, "width": 224}, do_convert_rgb=True),
)


def picture(mode: str, size: tuple[int, int] = SIZE) -> PIL.Image.Image:
    """No symmetry that a turn would leave as it is; all degrees of transparency, none beneath colours."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    colours = [255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 5 + y / 9)]
    alpha = 255 * np.clip(2 * (x + y) / (width + height) - 0.5, 0, 1)
    rgba = PIL.Image.fromarray(np.stack([*colours, alpha], 2).astype(np.uint8))
    if mode in ("P", "PA"):
        indexed = rgba.convert("RGB").quantize(64)
        return indexed if mode == "P" else indexed.convert("PA")
    return rgba if mode == "RGBA" else rgba.convert("LA" if mode == "LA" else "RGB").convert(mode)


def file_of(made: PIL.Image.Image, format: str, orientation: int = 1, **options: object) -> bytes:
    buffer = io.BytesIO()
    if orientation != 1:
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    made.save(buffer, format, **options)
    return buffer.getvalue()


def theirs(processor: object, encoded: bytes) -> torch.Tensor:
    opened = PIL.Image.open(io.BytesIO(encoded))
    return processor([PIL.ImageOps.exif_transpose(opened)], return_tensors="pt")["pixel_values"]


def assert_as_theirs(encoded: bytes) -> None:
    for processor in PROCESSORS:
        assert torch.equal(preprocess(processor, [Image(encoded)]), theirs(processor, encoded))


@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format in MODES for mode in MODES[format]])
def test_every_format_and_mode_in_every_orientation(format: str, mode: str) -> None:
    for orientation in range(1, 9) if format in WITH_EXIF else (1,):
        encoded = file_of(picture(mode), format, orientation)
        upright = Image(encoded).open()
        assert upright.mode == "RGB" and "transparency" not in upright.info
        assert upright.size == (SIZE[::-1] if orientation > 4 else SIZE)
        pixels, full = Image(encoded).pixels(224)
        assert full == upright.size and np.array_equal(pixels, np.array(upright))
        assert_as_theirs(encoded)


@pytest.mark.parametrize(("mode", "clear"), [(mode, each) for mode, some in CLEAR.items() for each in some])
@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_colours_that_stand_for_nothing(format: str, mode: str, clear: object) -> None:
    if format == "GIF" and not (mode == "P" and isinstance(clear, int)):
        clear, mode = 3, "P"
    made = picture(mode)
    if mode in ("L", "RGB"):
        made.paste(clear, (5, 6, 30, 20))
    assert_as_theirs(file_of(made, format, transparency=clear))


def test_what_is_transparent_is_white() -> None:
    made = PIL.Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    made.putpixel((1, 0), (0, 0, 0, 255))
    made.putpixel((2, 0), (200, 0, 100, 128))
    assert np.array(Image(file_of(made, "PNG")).open()).tolist() == [[[255] * 3, [0] * 3, [227, 127, 177]]]
    for mode in ("La", "RGBa"):  # colours multiplied by their alpha, as Pillow's scaling makes them
        grey = picture("LA" if mode == "La" else "RGBA")
        difference = np.abs(np.array(Image(grey.convert(mode)).open(), float) - np.array(Image(grey).open()))
        assert difference.max() <= 2


def grey_file(values: np.ndarray, mode: str, format: str, **options: object) -> bytes:
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}[mode]
    made = PIL.Image.frombytes(mode, values.shape[::-1], values.astype(kind).tobytes())
    return file_of(made, format, **options)


RAMP = np.array([[0, 127, 129, 257 * 100], [257 * 100 + 200, 40_000, 65_407, 65_535]])
AS_BYTES = [[0, 0, 1, 100], [101, 156, 255, 255]]  # v / 257, rounded


@pytest.mark.parametrize(
    ("mode", "format"),
    [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I", "TIFF"), ("I", "PPM"), ("F", "TIFF")],
)
def test_greys_of_many_bits_are_scaled(mode: str, format: str) -> None:
    encoded = grey_file(RAMP, mode, format)
    assert np.array(Image(encoded).open())[..., 0].tolist() == AS_BYTES
    assert np.array_equal(Image(encoded).pixels(10)[0], np.array(Image(encoded).open()))
    assert np.array_equal(
        Image(PIL.Image.open(io.BytesIO(encoded))).pixels(10)[0], Image(encoded).pixels(10)[0]
    )


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("mode, format", [("I;16", "PNG"), ("I;16B", "TIFF"), ("I", "TIFF")])
def test_greys_of_many_bits_are_turned(mode: str, format: str, orientation: int) -> None:
    tag = {"exif": PIL.Image.Exif()}
    tag["exif"][0x0112] = orientation
    encoded = grey_file(RAMP, mode, format, **tag)
    plain = PIL.Image.fromarray(np.array(AS_BYTES, np.uint8))
    plain.getexif()[0x0112] = orientation
    assert np.array_equal(
        np.array(Image(encoded).open())[..., 0], np.array(PIL.ImageOps.exif_transpose(plain))
    )


@pytest.mark.parametrize("values", [[-1, 5], [0, 65_536], [0, float("nan")], [0, float("inf")]])
def test_greys_without_a_white_are_refused(values: list[float]) -> None:
    encoded = grey_file(np.array([values]), "F", "TIFF")
    for read in (lambda image: image.open(), lambda image: image.pixels(10), open_image):
        with pytest.raises(
            ImageError, match=r"depth\.tif: its grey values \(Pillow mode F\) range from .*save it"
        ):
            read(Image(encoded, "depth.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES["JPEG"])
@pytest.mark.parametrize("longest", [1000, 1001])
def test_a_jpeg_at_a_fraction_is_framed_alike(mode: str, longest: int, orientation: int) -> None:
    """Half of an odd length ends in a column for half a pixel, which a turn would put first."""
    encoded = file_of(picture(mode, (longest, 732)), "JPEG", orientation, quality=95)
    pixels, size = Image(encoded).pixels(224)
    assert size == ((732, longest) if orientation > 4 else (longest, 732))
    in_full = mode == "CMYK" or (longest == 1001 and orientation != 1)  # Pillow alone reads CMYK
    assert max(pixels.shape) == (longest if in_full else -(-longest // 2))
    difference = (preprocess(PROCESSORS[0], [Image(encoded)]) - theirs(PROCESSORS[0], encoded)).abs()
    assert difference.mean() * 255 * 0.27 < (1 if not in_full else 1e-9)  # 0.27: CLIP's standard deviation


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\0\0\x1cftypavif", "AVIF, for which .* no decoder; install"),
        (b"\0\0\0\x1cftypheic", "HEIC, .*to JPEG"),
        (b'<?xml version="1.0"?>\n<svg xmlns="a"/>', "an SVG drawing"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_is_no_image_is_named(content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unidentified(file: io.BytesIO) -> None:  # as Pillow without a decoder
        raise PIL.UnidentifiedImageError

    monkeypatch.setattr(images_module.PIL.Image, "open", unidentified)
    with pytest.raises(ImageError, match=rf"^a\.avif: not an image, or .*: .*{reason}"):
        Image(content, "a.avif").open()
