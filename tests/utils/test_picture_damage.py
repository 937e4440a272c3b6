"""Damage is found and named, and what only looks odd is read."""

import numpy as np
import pytest

from tests.damaged_images import (
    FORMATS,
    MORE_FORMATS,
    damaged_pictures,
    encoded,
    odd_but_sound_pictures,
    picture,
)
from utils.images import ImageError, read_picture, read_pixels

EVERY = FORMATS | MORE_FORMATS


def assert_refused(damaged: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        read_picture(damaged, "a.jpg")
    for least_side in (20, 10_000):
        with pytest.raises(ImageError, match=reason):
            read_pixels(damaged, "a.jpg", least_side)


def test_whatever_is_damaged_is_refused() -> None:
    reasons = "damaged|not an image|scale the image down|one side more than 200 times the other; crop"
    for name, content in damaged_pictures(EVERY).items():
        try:
            assert_refused(content, reasons)
        except BaseException as error:  # which of them it was
            raise AssertionError(name) from error


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("gif", "bmp")])
def test_a_file_of_which_the_last_bytes_are_missing_is_refused(name: str) -> None:
    for cut in (1, 2, 10):
        assert_refused(encoded(name)[:-cut], "damaged|not an image")


def test_whole_and_odd_files_are_read() -> None:
    for name in EVERY:
        assert read_picture(encoded(name), "a").size == picture().size
    for name, content in odd_but_sound_pictures().items():
        assert read_picture(content, name).width > 0


def test_a_few_bytes_too_many_are_harmless() -> None:
    whole = encoded("restarts")
    odd = whole[:-2] + b"\0\0" + whole[-2:]  # before the end marker, as some cameras write
    assert np.array_equal(read_picture(odd, "a"), read_picture(whole, "a"))
    for name in ("jpeg", "png", "webp"):
        whole = encoded(name)
        assert np.array_equal(read_picture(whole + b"appended" * 20, "a"), read_picture(whole, "a"))


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError, match="the image cannot be read"):
        read_picture(tmp_path / "folder.jpg", "folder.jpg")
