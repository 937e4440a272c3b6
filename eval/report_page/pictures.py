"""Pictures as the page carries them: reduced, and written into it."""

import base64
import io
from functools import lru_cache
from pathlib import Path

import PIL.Image

from utils.conversation import Image, ImageError
from utils.image_bytes import is_data_url

LARGEST_SIDE = 360  # pixels
_SMALL = 128  # pictures up to here stay exact


@lru_cache(maxsize=4096)
def picture_url(source: str | Image) -> str | None:
    """The image, or that of a file, as a data URL, which one is already; None where it cannot be read any more."""
    if isinstance(source, str) and is_data_url(source):
        return source
    try:
        picture = (source if isinstance(source, Image) else Image(Path(source))).open()
    except ImageError:
        return None
    stream = io.BytesIO()
    if max(picture.size) <= _SMALL:
        picture.save(stream, "PNG")
        kind = "png"
    else:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), PIL.Image.Resampling.LANCZOS)
        picture.save(stream, "JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
