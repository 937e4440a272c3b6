"""The records of JSON files as texts, one after the other."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.data.cache import in_units
from utils.data.file_kinds import refuse_other_kinds
from utils.data.json_stream import JsonStream, Value
from utils.data.spec import DataError

_LONGEST_LINE = 1 << 27  # bytes


@dataclass(frozen=True)
class RecordText:
    """A record's JSON text, or what is wrong with it."""

    text: str | None
    is_object: bool
    problem: str | None = None


def read_json(path: Path, advance: Callable[[int], object], key: str | None = None) -> Iterator[RecordText]:
    """The items of a JSON list, or the values of an object with their keys as "id".

    Args:
        key: the list or object is found under this key of the file's one object, which must have it once.

    Raises `DataError` where the file is not such JSON, at whatever record that shows.
    """
    with JsonStream(path, advance) as stream:
        if key is None:
            yield from _records(stream)
        else:
            if stream.peek() != "{":
                raise stream.error(f'expected an object with the key "{key}"')
            others, found = [], False
            for name in stream.members():
                if name != key:
                    others.append(name)
                    stream.skip()
                elif found:
                    raise stream.error(f'the key "{key}" comes a second time')
                else:
                    found = True
                    yield from _records(stream)
            if not found:
                raise DataError(
                    f'{path} has no key "{key}", but {_listed(others)}: it is not the published file; fetch it'
                    " again"
                )
        stream.end()


def read_json_lines(path: Path, advance: Callable[[int], object]) -> Iterator[RecordText]:
    """The lines of a file that are not blank; a line that is no JSON is a record with a problem."""
    try:
        with path.open("rb") as file:
            file.seek(refuse_other_kinds(path, file))
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise DataError(f"{path}: line {number:,} is longer than {in_units(_LONGEST_LINE)}")
                advance(len(line))
                if not line.isspace():
                    yield _line(line, number)
    except OSError as error:
        raise DataError(f"cannot read {path} ({error})") from error


def _records(stream: JsonStream) -> Iterator[RecordText]:
    opening = stream.peek()
    if opening == "[":
        for _ in stream.items():
            yield _record(stream.value())
    elif opening == "{":
        for name in stream.members():
            yield _record(stream.value(), name)
    else:
        raise stream.error("expected a list of records, or an object of them")


def _record(value: Value, name: str | None = None) -> RecordText:
    is_object = isinstance(value.value, dict)
    if value.repeated_key is not None:
        return RecordText(None, is_object, f'the key "{value.repeated_key}" is in it twice')
    if name is None or not is_object:
        return RecordText(value.text, is_object)
    # A field "id" of the record's own comes later in the text, and so wins.
    separator = ", " if value.value else ""
    return RecordText(f'{{"id": {json.dumps(name)}{separator}{value.text[1:]}', True)


def _line(line: bytes, number: int) -> RecordText:
    try:
        text = line.decode()
        is_object = isinstance(json.loads(text), dict)
    except UnicodeDecodeError as error:
        return RecordText(None, False, f"line {number:,} is not UTF-8 ({error.reason} at byte {error.start})")
    except (ValueError, RecursionError) as error:
        return RecordText(None, False, f"line {number:,} is not valid JSON ({error})")
    return RecordText(text, is_object)


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:most]) or "none at all"
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
