"""Pictures as the page carries them: reduced, and written into it."""

import base64
import io
from functools import lru_cache
from pathlib import Path

import PIL.Image

from utils.conversation import Image, ImageError

LARGEST_SIDE = 360  # pixels
_SMALL = 128  # pictures up to here stay exact


@lru_cache(maxsize=4096)
def picture_url(path: str) -> str | None:
    """The picture as a data URL; None where the file cannot be read any more."""
    try:
        picture = Image(Path(path)).open()
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
