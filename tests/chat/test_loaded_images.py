"""Images that are read once: whole, kept as they were, and known by what they hold."""

import PIL.Image
import pytest

from chat.images import open_image
from utils.conversation import Image, ImageError


def test_an_opened_image_outlives_its_file(pictures):
    opened = open_image(pictures[0])
    before = opened.open().tobytes()
    pictures[0].unlink()
    assert (opened.name, opened.size) == (str(pictures[0]), (24, 20))
    assert opened.open().tobytes() == before
    assert open_image(opened) is opened


def test_the_same_picture_has_the_same_digest(pictures):
    content = pictures[0].read_bytes()
    copies = [open_image(source) for source in (pictures[0], content, Image(content, "other"))]
    assert len({each.digest for each in copies}) == 1
    assert open_image(pictures[1]).digest != copies[0].digest
    first, second = (PIL.Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    assert open_image(first).digest == open_image(first.copy()).digest != open_image(second).digest


@pytest.mark.parametrize("source", ["nowhere.png", b"junk", "."])
def test_what_cannot_be_read_is_an_image_error(source):
    with pytest.raises(ImageError):
        open_image(source)


def test_a_damaged_image_is_found_when_it_is_opened(pictures):
    with pytest.raises(ImageError, match="damaged"):
        open_image(pictures[0].read_bytes()[:-300])
