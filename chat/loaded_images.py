"""Images that were read and found whole, and that stay as they were whatever becomes of their files."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL.Image

from utils.conversation import Image, ImageError


class View(Protocol):
    """What the encoder is shown: an image that was read, or a tile of one, as the processor's `views` makes them."""

    @property
    def digest(self) -> str:
        """The same for views that are the same."""

    def open(self) -> PIL.Image.Image: ...

    def pixels(self, least_side: int) -> tuple[np.ndarray, tuple[int, int]]: ...


ImageSource = str | Path | bytes | PIL.Image.Image | Image


@dataclass(frozen=True)
class LoadedImage(Image):
    """An image whose source is in memory and decodes without damage; made by `open_image`.

    It keeps a file's encoded bytes, not its pixels: a photograph takes a tenth of the memory, and is decoded
    for the model as training and evaluation do it.
    """

    source: bytes | PIL.Image.Image
    size: tuple[int, int] = (0, 0)  # width and height in pixels, upright

    __hash__ = Image.__hash__

    @cached_property
    def digest(self) -> str:
        """The same for images that are the same, byte for byte."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        size = f"{self.source.mode} {self.source.size}".encode()
        return hashlib.sha256(size + self.source.tobytes()).hexdigest()


def open_image(image: ImageSource) -> LoadedImage:
    """Read an image now and decode it once, to know that it can be; one that was opened before is kept.

    Raises `ImageError` for one that cannot be read.
    """
    if isinstance(image, LoadedImage):
        return image
    lazy = image if isinstance(image, Image) else Image(image)
    source, name = lazy.source, lazy.name
    if isinstance(source, str | Path):
        try:
            source = Path(source).read_bytes()
        except FileNotFoundError as error:
            raise ImageError(f"{name}: there is no such image file") from error
        except OSError as error:
            raise ImageError(f"{name}: the image cannot be read ({error.strerror})") from error
    elif not isinstance(source, bytes | PIL.Image.Image):
        source = source.read()
    picture = Image(source, name).open()
    return LoadedImage(source if isinstance(source, bytes) else picture, name, picture.size)
