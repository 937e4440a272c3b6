"""Pixels are those of the whole decode, or of a stated fraction of it, whatever the file."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from utils.images import ImageError, read_picture, read_pixels, read_size


def photograph(width: int, height: int) -> PIL.Image.Image:
    """Smooth colours with some detail, as photographs have."""
    y, x = np.mgrid[:height, :width] / 40
    channels = [np.sin(x + phase) * np.cos(y * phase) for phase in (1.0, 1.7, 2.3)]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return PIL.Image.fromarray((127 + 100 * np.stack(channels, 2) + noise).clip(0, 255).astype(np.uint8))


def jpeg(picture: PIL.Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_a_jpeg_in_full_is_what_pillow_decodes(mode: str, options: dict) -> None:
    encoded = jpeg(photograph(67, 45).convert(mode), **options)
    pixels, size = read_pixels(encoded, "a", least_side=40)
    assert size == (67, 45)
    assert np.array_equal(pixels, np.array(read_picture(encoded, "a")))


@pytest.mark.parametrize(
    ("least_side", "shape"), [(451, (451, 643)), (226, (451, 643)), (225, (226, 322)), (56, (57, 81))]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_is_decoded_at_the_smallest_fraction_that_is_large_enough(
    mode: str, least_side: int, shape: tuple[int, int]
) -> None:
    encoded = jpeg(photograph(643, 451).convert(mode))
    pixels, size = read_pixels(encoded, "a", least_side)
    assert size == (643, 451) and pixels.shape == (*shape, 3) and pixels.dtype == np.uint8
    pillows = PIL.Image.open(io.BytesIO(encoded))
    pillows.draft(None, (least_side, least_side))
    assert np.array_equal(pixels, np.array(pillows.convert("RGB")))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_size_is_read_from_the_header_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"picture.{kind}"
    photograph(40, 24).save(path, kind, exif=exif)
    for source in (path, str(path), path.read_bytes(), PIL.Image.open(path)):
        assert read_size(source, "a") == read_picture(source, "a").size


def test_a_size_that_is_not_there_is_named_as_the_picture_would_be(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<html>")
    for path in (tmp_path / "a.png", tmp_path / "nowhere.png"):
        with pytest.raises(ImageError) as said:
            read_picture(path, path.name)
        with pytest.raises(ImageError) as again:
            read_size(path, path.name)
        assert str(again.value) == str(said.value)
    with pytest.raises(ImageError, match="one side more than 200 times the other"):
        read_size(PIL.Image.new("L", (1000, 2)), "a")


def test_what_the_quick_decoder_finds_fault_with_is_left_to_pillow() -> None:
    encoded = jpeg(photograph(64, 48))
    scan = encoded.index(b"\xff\xda")
    faulty = (
        encoded[:scan] + b"\0\0\0" + encoded[scan:]
    )  # bytes between two segments, which may be passed over
    assert np.array_equal(read_pixels(faulty, "a", 40)[0], np.array(read_picture(encoded, "a")))
