"""Images of a dialogue: read and found whole, to stay as they were whatever becomes of their files; and their paths.

People write paths on one line, separated by spaces, quoted where they hold spaces. A path may also be a `file://`
address, as file managers copy it (RFC 8089): percent-encoded, of this machine.
"""

import hashlib
import os
import re
import shlex
import socket
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import numpy as np
import PIL.Image

from utils.conversation import Image
from utils.images import encoded_bytes


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
    if not isinstance(source, PIL.Image.Image):
        source = encoded_bytes(source, name)
    pixels = Image(source, name).open()
    return LoadedImage(source if isinstance(source, bytes) else pixels, name, pixels.size)


NO_IMAGE = ("", "na", "none")
"""What stands for "no new image" where paths are asked for; compared without case."""


class ImagePathError(ValueError):
    """A line of image paths that cannot be read as such."""


def split_image_paths(line: str) -> tuple[str, ...]:
    """The paths in `line`, in order; none for an empty line or `na`.

    Quotes and backslashes work as in a shell, which is also how terminals paste a file that is dropped on
    them. Raises `ImagePathError` where a quote is not closed, and for an address of another machine.
    """
    if line.strip().lower() in NO_IMAGE:
        return ()
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ImagePathError(
            f"cannot read the image paths {line.strip()!r} ({error});"
            " put paths with spaces or quotes in quotes"
        ) from error
    return tuple(map(local_path, words))


def local_path(word: str) -> str:
    """The path that a `file://` address stands for; any other word as it is.

    Raises `ImagePathError` for an address of another machine.
    """
    address = _FILE_ADDRESS.fullmatch(word)
    if not address:
        return word
    host, path = address["host"] or "", unquote(address["path"])
    if host.lower() not in ("", "localhost", "127.0.0.1", socket.gethostname().lower()):
        raise ImagePathError(
            f"{word}: files on another machine ({host}) cannot be read; copy the image to this machine"
        )
    if "\0" in path:
        raise ImagePathError(f"{word}: this is not a valid file name")
    return path


def existing_image_paths(line: str) -> tuple[str, ...]:
    """As `split_image_paths`, but a line that as a whole is a file's name is that file; `~` is the home."""
    whole = _expanded(line.strip())
    if line.strip() and whole.is_file():
        return (str(whole),)
    return tuple(os.path.expanduser(path) for path in split_image_paths(line))


def leading_image_paths(line: str) -> tuple[tuple[str, ...], str]:
    """Image files that are named at the beginning of a line, as terminals paste files that are dropped on
    them, and what follows.

    Of names only those count that are there and have an ending that images have, so that a question's first word
    is never taken for a file; `file://` addresses always count. Raises `ImagePathError` as `split_image_paths` does.
    """
    whole = _expanded(line.strip())
    if _is_image_file(whole):
        return (str(whole),), ""
    paths, rest = [], line.strip()
    while rest and (word := _FIRST_WORD.match(rest)):
        try:
            unquoted = shlex.split(word[0])
        except ValueError:  # a quote that is not closed: it is an apostrophe
            break
        name = "".join(unquoted)
        path = _expanded(local_path(name))
        if not _FILE_ADDRESS.fullmatch(name) and not _is_image_file(path):
            break
        paths.append(str(path))
        rest = rest[word.end() :].lstrip()
    return tuple(paths), rest


_FILE_ADDRESS = re.compile(r"file:(//(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE | re.DOTALL)
_FIRST_WORD = re.compile(r"""(?:'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^\s'"\\])+""")


def _expanded(path: str) -> Path:
    """With the home for `~`, where there is such a home: a question may begin with `~` too."""
    return Path(os.path.expanduser(path))


def _is_image_file(path: Path) -> bool:
    try:
        return path.suffix.lower() in PIL.Image.registered_extensions() and path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False
