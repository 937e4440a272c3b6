"""JSON of any size, a value at a time.

The standard library's scanner does the parsing; it is only handed one value after the other, from a text that
moves along the file. So records keep the exact text that the file has, numbers, escapes and NaN mean what they
mean to `json.load`, and every error has its place: ijson, the usual library for this, gives none of the three,
and what it gains on long texts is less than decoding their base64 takes. Files are unpacked where they are gzip, and
refused where they are not what their name says.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Any

from utils.commands import in_units
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


_CHUNK = 1 << 20  # bytes
_LONGEST_VALUE = 1 << 27  # characters; what is longer is not read, so that damage cannot fill the memory
_PART_OF_NUMBER = re.compile(r"[-+.eE0-9]*")
_LONGEST_TOKEN = 16  # characters: an error so near to the text's end may only mean that the text goes on
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Value:
    """A value, the text that it was read from, and a key that one of its objects holds twice, if any."""

    value: Any
    text: str
    repeated_key: str | None = None


class JsonStream:
    """A cursor in a JSON file, in UTF-8 with or without a byte order mark.

    All methods raise `DataError`, which names file, byte and line, where the text is not what they expect.
    """

    def __init__(
        self, path: Path, advance: Callable[[int], object] = lambda count: None, remedy: str = FETCH
    ) -> None:
        """`advance` is told how many bytes were read; `remedy` is what messages advise for a damaged file."""
        self.path = path
        self.remedy = remedy
        self._advance = advance
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scanner = json.JSONDecoder(object_pairs_hook=self._object)
        self._repeated: str | None = None
        self._text, self._place = "", 0  # what was read and is not used up; the cursor in it
        self._bytes_read = self._values = 0
        self._ended = False

    def __enter__(self) -> "JsonStream":
        try:
            self._file = open_unpacked(self.path)
            mark = refuse_other_kinds(self.path, self._file, remedy=self.remedy)
        except READ_ERRORS as error:
            raise DataError(f"cannot read {self.path} ({error})") from error
        self._bytes_read = self._file.seek(mark)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            self._place = _end(_SPACE, self._text, self._place)
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def items(self) -> Iterator[None]:
        """Enter a list: at each step the cursor stands before an item, which has to be read."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        yield
        while self._take(",]") == ",":
            yield

    def members(self) -> Iterator[str]:
        """Enter an object: at each step the cursor stands before a key's value, which has to be read."""
        self._take("{")
        if self.peek() == "}":
            self._take("}")
            return
        yield self._key()
        while self._take(",}") == ",":
            yield self._key()

    def value(self) -> Value:
        """Read the value before which the cursor stands, whole."""
        self.peek()
        while True:
            self._repeated = None
            try:
                value, end = self._scanner.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated string")
                may_go_on = is_open or error.pos >= len(self._text) - _LONGEST_TOKEN
                if may_go_on and not self._ended:
                    self._more()
                elif is_open or error.pos >= len(self._text):
                    raise self.error("the file ends inside the value that begins here") from error
                else:
                    raise self.error(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.error("lists and objects are nested too deeply") from error
            except ValueError as error:  # a number of thousands of digits
                raise self.error(str(error)) from error
            else:
                might_go_on = _end(_PART_OF_NUMBER, self._text, end) == len(self._text)
                if not might_go_on or not self._more():
                    text = self._text[self._place : end]
                    self._place = end
                    self._values += 1
                    return Value(value, text, self._repeated)

    def skip_comma(self) -> None:
        """Pass over a comma, where one is next."""
        if self.peek() == ",":
            self._place += 1

    def skip(self) -> None:
        """Pass over a value, however large, a part at a time."""
        opening = self.peek()
        if opening == "[":
            for _ in self.items():
                self.value()
        elif opening == "{":
            for _ in self.members():
                self.value()
        else:
            self.value()

    def end(self) -> None:
        """Make sure that nothing follows."""
        found = self.peek()
        if found:
            advice = "; one record a line belongs into a file named .jsonl" if found == "{" else ""
            raise self.error(f"something follows after the end of the JSON text{advice}")

    def error(self, message: str, place: int | None = None) -> DataError:
        """An error at the cursor, or at a place of the text that was read."""
        place = self._place if place is None else place
        unread = len(self._decoder.getstate()[0]) + len(self._text[place:].encode())
        return self._error_at(self._bytes_read - unread, message)

    def _error_at(self, byte: int, message: str) -> DataError:
        return DataError(
            f"{self.path} is damaged at byte {byte:,} (line {_line(self.path, byte):,}, after"
            f" {self._values:,} values): {message}; {self.remedy}, or repair it"
        )

    def _key(self) -> str:
        if self.peek() != '"':
            raise self.error("expected a key in double quotes")
        key = self.value().value
        self._values -= 1
        self._take(":")
        return key

    def _take(self, expected: str) -> str:
        found = self.peek()
        if not found:
            raise self.error(f"the file ends where {' or '.join(expected)} is expected: it is cut off")
        if found not in expected:
            raise self.error(f"expected {' or '.join(expected)}, found {found!r}")
        self._place += 1
        return found

    def _more(self) -> bool:
        """Read on, and let go of what is used up; False at the end of the file."""
        if self._ended:
            return False
        rest = self._text[self._place :]
        if len(rest) > _LONGEST_VALUE:
            raise self.error(f"a single value is longer than {in_units(_LONGEST_VALUE)}")
        self._text, self._place = rest, 0
        pending = len(self._decoder.getstate()[0])
        try:
            chunk = self._file.read(max(_CHUNK, len(rest)))
            self._text += self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            byte = self._bytes_read - pending + error.start
            raise self._error_at(byte, "the text is not UTF-8; save it as UTF-8") from error
        except READ_ERRORS as error:
            raise DataError(f"cannot read {self.path} ({error})") from error
        self._bytes_read += len(chunk)
        self._advance(len(chunk))
        self._ended = not chunk
        return not self._ended

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            self._repeated = next(name for name in fields if names.count(name) > 1)
        return fields


def _line(path: Path, byte: int) -> int:
    """The line of a byte, from 1: counted when it is asked for, which is once at most."""
    lines = 1
    with open_unpacked(path) as file:
        while byte > 0 and (chunk := file.read(min(_CHUNK, byte))):
            lines += chunk.count(b"\n")
            byte -= len(chunk)
    return lines


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    """Where what begins at a place and matches ends."""
    found = pattern.match(text, place)
    return found.end() if found else place
