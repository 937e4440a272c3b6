"""Image paths as people write them on one line: separated by spaces, quoted where they hold spaces."""

import re
import shlex
from pathlib import Path

import PIL.Image

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
    paths = split_image_paths(line)
    return tuple(str(Path(path).expanduser()) if path.startswith("~") else path for path in paths)


def leading_image_paths(line: str) -> tuple[tuple[str, ...], str]:
    """Image files that are named at the beginning of a line, as terminals paste files that are dropped on
    them, and what follows.

    Only names with an ending that images have count, so that a question's first word is never taken for a file.
    """
    whole = Path(line.strip()).expanduser()
    if _is_image_file(whole):
        return (str(whole),), ""
    paths, rest = [], line.strip()
    while rest and (word := _FIRST_WORD.match(rest)):
        try:
            unquoted = shlex.split(word[0])
        except ValueError:  # a quote that is not closed: it is an apostrophe
            break
        path = Path("".join(unquoted)).expanduser()
        if not _is_image_file(path):
            break
        paths.append(str(path))
        rest = rest[word.end() :].lstrip()
    return tuple(paths), rest


_FIRST_WORD = re.compile(r"""(?:'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^\s'"\\])+""")


def _is_image_file(path: Path) -> bool:
    try:
        return path.suffix.lower() in PIL.Image.registered_extensions() and path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False
