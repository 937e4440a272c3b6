"""Image paths as people write them on one line: separated by spaces, quoted where they hold spaces."""

import shlex
from pathlib import Path

NO_IMAGE = ("", "na", "none")
"""What stands for "no new image" where paths are asked for; compared without case."""


class ImagePathError(ValueError):
    """A line of image paths that cannot be read as such."""


def split_image_paths(line: str) -> tuple[str, ...]:
    """The paths in `line`, in order; none for an empty line or `na`.

    Quotes and backslashes work as in a shell, which is also how terminals paste a file that is dropped on
    them. Raises `ImagePathError` where a quote is not closed.
    """
    if line.strip().lower() in NO_IMAGE:
        return ()
    try:
        return tuple(shlex.split(line))
    except ValueError as error:
        raise ImagePathError(
            f"cannot read the image paths {line.strip()!r} ({error});"
            " put paths with spaces or quotes in quotes"
        ) from error


def existing_image_paths(line: str) -> tuple[str, ...]:
    """As `split_image_paths`, but a line that as a whole is a file's name is that file; `~` is the home."""
    whole = Path(line.strip()).expanduser()
    if line.strip() and whole.is_file():
        return (str(whole),)
    return tuple(str(Path(path).expanduser()) for path in split_image_paths(line))
