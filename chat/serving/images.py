"""The image that a request's URL stands for: carried in the URL itself, or, where it is allowed, fetched or read."""

import io
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import PIL.features
import PIL.Image

from chat.images import LoadedImage, open_image
from chat.remote_images import RemoteImageError, RemoteImages
from chat.server_setup import MAX_JPEG_SCANS, Limits
from chat.serving.errors import ApiError, invalid
from utils.conversation import Image, ImageError
from utils.images import image_bytes, is_image_text

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", *(["AVIF"] if "avif" in PIL.features.get_supported() else []))
"""Kinds of files that are decoded: those of the web. Pillow knows forty more, some of which start programs; before
11.3 it did not know AVIF."""

_DECODED_AT_ONCE = 2
"""Images: a few of the largest would fill the memory."""

_START_OF_SCAN = b"\xff\xda"


@dataclass(frozen=True)
class Sources:
    """Where images may come from, data URLs aside. `remote` None: nowhere; `folder` None: no files."""

    remote: RemoteImages | None = None
    folder: Path | None = None


class ImageOpener:
    """Opens images within limits; it may be used by several threads."""

    def __init__(self, limits: Limits, sources: Sources) -> None:
        self._limits = limits
        self._sources = sources
        self._decoding = threading.Semaphore(_DECODED_AT_ONCE)

    def open(self, url: str, param: str) -> LoadedImage:
        """Raises `ApiError` (400) for an image that is too large, cannot be read or may not be reached."""
        return self.checked(self._bytes(url, param), param)

    def checked(self, encoded: bytes, param: str, name: str = "") -> LoadedImage:
        """The image that these bytes of a file are; raises as `open` does."""
        if len(encoded) > self._limits.image_bytes:
            raise self._too_large(len(encoded), param)
        self._look_at_header(encoded, param)
        try:
            with self._decoding:
                return open_image(Image(encoded, name))
        except ImageError as error:
            raise invalid(str(error), param, "invalid_image") from error

    def _bytes(self, url: str, param: str) -> bytes:
        scheme = url[:8].lower()
        if is_image_text(url):
            return self._carried(url, param)
        if scheme.startswith(("http://", "https://")):
            if self._sources.remote is None:
                raise ApiError(
                    400,
                    "this server fetches no images from the web; send it as a data URL",
                    "remote_images_not_allowed",
                    param,
                )
            try:
                return self._sources.remote.fetch(url)
            except RemoteImageError as error:
                raise invalid(str(error), param, "image_not_fetched") from error
        return self._read(url, param)

    def _carried(self, url: str, param: str) -> bytes:
        if len(url) > 1.5 * self._limits.image_bytes:  # base64 takes 4/3, line breaks a little more
            raise self._too_large(len(url) * 3 // 4, param)
        try:
            return image_bytes(url)
        except ValueError as error:
            raise invalid(f"the image's base64 is broken: {error}", param, "invalid_image") from error

    def _read(self, url: str, param: str) -> bytes:
        folder = self._sources.folder
        if folder is None:
            raise invalid("only data URLs of images are accepted here", param, "local_images_not_allowed")
        try:
            path = (folder / url.removeprefix("file://")).resolve(strict=True)
            if path.is_relative_to(folder.resolve()) and path.is_file():
                if path.stat().st_size > self._limits.image_bytes:
                    raise self._too_large(path.stat().st_size, param)
                return path.read_bytes()
        except (OSError, ValueError, RuntimeError):  # also: names with zero bytes, links in a circle
            pass
        # The same words for what is not there and what is elsewhere: nobody learns which files there are.
        raise invalid("there is no such image in the folder of images", param, "invalid_image")

    def _look_at_header(self, encoded: bytes, param: str) -> None:
        """Refuse what would take long or fill the memory, before anything is decoded."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a size for which we have our own limit
                width, height = PIL.Image.open(io.BytesIO(encoded), formats=FORMATS).size
        except PIL.Image.DecompressionBombError:
            raise self._too_many_pixels(param) from None
        except PIL.UnidentifiedImageError:
            kinds = ", ".join(FORMATS)
            raise invalid(
                f"not an image of a kind that is accepted ({kinds})", param, "invalid_image"
            ) from None
        except Exception as error:  # Pillow's decoders report damage in many ways
            raise invalid(f"the image is damaged ({error})", param, "invalid_image") from error
        if width * height > self._limits.image_pixels:
            raise self._too_many_pixels(param)
        if encoded.count(_START_OF_SCAN) > MAX_JPEG_SCANS and encoded.startswith(b"\xff\xd8"):
            raise invalid(f"the image has more than {MAX_JPEG_SCANS} scans", param, "image_too_large")

    def _too_large(self, size: int, param: str) -> ApiError:
        return invalid(
            f"the image has {size:,} bytes, more than the {self._limits.image_bytes:,} that are accepted",
            param,
            "image_too_large",
        )

    def _too_many_pixels(self, param: str) -> ApiError:
        most = f"{self._limits.image_pixels:,}"
        return invalid(f"the image has more than {most} pixels; scale it down", param, "image_too_large")
