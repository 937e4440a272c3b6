"""Images that are read once: whole, kept as they were, and known by what they hold."""

import PIL.Image
import pytest

from chat.images import open_image
from utils.conversation import Image, ImageError


def test_an_opened_image_outlives_its_file_and_is_known_by_what_it_holds(pictures):
    content = pictures[0].read_bytes()
    opened = open_image(pictures[0])
    assert (opened.name, opened.size) == (str(pictures[0]), (24, 20)) and open_image(opened) is opened
    pixels = PIL.Image.open(pictures[0]).tobytes()
    pictures[0].unlink()
    assert opened.open().tobytes() == pixels
    assert open_image(Image(content, "other")).digest == opened.digest != open_image(pictures[1]).digest
    red, blue = (PIL.Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    assert open_image(red).digest == open_image(red.copy()).digest != open_image(blue).digest


@pytest.mark.parametrize(
    "source, words", [("nowhere.png", "no such"), (b"junk", "not an image"), (None, "damaged")]
)
def test_what_cannot_be_read_is_an_image_error(pictures, source, words):
    with pytest.raises(ImageError, match=words):
        open_image(source or pictures[0].read_bytes()[:-300])
