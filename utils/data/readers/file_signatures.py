"""Files as bytes, unpacked where they are gzip, and those that are not what their name says."""

import gzip
import zlib
from io import BufferedIOBase
from pathlib import Path

from utils.data.spec import DataError

FETCH = "fetch it again"
"""What to do about a published file that is damaged."""

REWRITE = "write it again"
"""What to do about a file of one's own that is damaged."""

READ_ERRORS = (OSError, EOFError, zlib.error)
"""What reading a file raises, packed or not."""

_MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark, as some editors write it
_KINDS = {
    b"\x1f\x8b": "a gzip file: unpack it (gunzip)",
    b"PK\x03\x04": "a zip file: unpack it (unzip)",
    b"\xfd7zXZ": "an xz file: unpack it (unxz)",
    b"\x28\xb5\x2f\xfd": "a zstandard file: unpack it (unzstd)",
    b"PAR1": "a parquet file: name it .parquet",
    b"ARROW1": "an Arrow file: hand over the folder that `datasets` saved",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
    b"<": "a web page or XML, usually an error message saved under the file's name: {remedy}",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"\xff\xd8\xff": "a JPEG picture: hand over the annotation file",
    b"\x89PNG": "a PNG picture: hand over the annotation file",
    b"\0": "full of zero bytes, an unfinished download: {remedy}",
}


def is_parquet(path: Path) -> bool:
    """Whether a file is parquet by its name."""
    return path.suffix.lower() == ".parquet"


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files in a folder, by name."""
    return sorted(path for path in folder.iterdir() if is_parquet(path))


def is_packed(path: Path) -> bool:
    """Whether a file is gzip by its name."""
    return path.suffix.lower() == ".gz"


def open_unpacked(path: Path) -> BufferedIOBase:
    """The bytes of a file, of one named .gz what is packed in it."""
    return gzip.open(path) if is_packed(path) else path.open("rb")


def refuse_other_kinds(path: Path, file: BufferedIOBase, remedy: str = FETCH) -> int:
    """How many bytes the byte order mark of a text file takes, 0 or 3.

    Raises `DataError` for an empty file and for one whose first bytes say that it is no JSON text.
    """
    beginning = file.read(4096)
    mark = len(_MARK) if beginning.startswith(_MARK) else 0
    text = beginning[mark:].lstrip()
    if not text:
        raise DataError(f"{path} is empty; {remedy}")
    for signature, kind in _KINDS.items():
        if text.startswith(signature):
            raise DataError(f"{path} is {kind.format(remedy=remedy)}")
    return mark
