"""The records of JSON files as texts, one after the other.

Published files have one shape each, which is known. Of a file of one's own the shape is looked up in it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.data.readers.conversion_cache import in_units
from utils.data.readers.file_signatures import FETCH, READ_ERRORS, REWRITE, open_unpacked, refuse_other_kinds
from utils.data.readers.json_stream import JsonStream, Value
from utils.data.spec import DataError

_LONGEST_LINE = 1 << 27  # bytes
_LINES = (".jsonl", ".ndjson")
_MESSAGES = ("conversations", "messages")  # a record of one's own has one of these keys


@dataclass(frozen=True)
class RecordText:
    """A record's JSON text, or what is wrong with it."""

    text: str | None
    is_object: bool
    problem: str | None = None


def read_json(
    path: Path, advance: Callable[[int], object], key: str | None = None, remedy: str = FETCH
) -> Iterator[RecordText]:
    """The items of a JSON list, or the values of an object with their keys as "id".

    Args:
        key: the list or object is found under this key of the file's one object, which must have it once.
        remedy: what messages advise for a damaged file.

    Raises `DataError` where the file is not such JSON, at whatever record that shows.
    """
    with JsonStream(path, advance, remedy) as stream:
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


def read_json_lines(
    path: Path, advance: Callable[[int], object], remedy: str = FETCH
) -> Iterator[RecordText]:
    """The lines of a file that are not blank; a line that is no JSON is a record with a problem."""
    try:
        with open_unpacked(path) as file:
            file.seek(refuse_other_kinds(path, file, remedy))
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise DataError(f"{path}: line {number:,} is longer than {in_units(_LONGEST_LINE)}")
                advance(len(line))
                if not line.isspace():
                    yield _line(line, number)
    except READ_ERRORS as error:
        raise DataError(f"cannot read {path} ({error})") from error


def read_own(path: Path, advance: Callable[[int], object]) -> Iterator[RecordText]:
    """The records of a JSON file of one's own, in whichever of the usual shapes it is.

    A list; one record a line, or one behind the other; a single record; an object of records by their ids; a
    list or an object of them under one key, as `{"data": [...]}`. A comma behind a record does no harm.

    Raises `DataError` for records under several keys, and as `read_json` does.
    """
    with JsonStream(path, remedy=REWRITE) as stream:
        opening = stream.peek()
        is_lines = opening != "[" and any(end.lower() in _LINES for end in path.suffixes[-2:])
        key, is_single = (None, False) if is_lines or opening != "{" else _shape_of_object(stream)
    if is_lines:
        yield from read_json_lines(path, advance, REWRITE)
    elif is_single:
        with JsonStream(path, advance, REWRITE) as stream:
            while stream.peek():
                yield _record(stream.value())
                stream.skip_comma()
    else:
        yield from read_json(path, advance, key, REWRITE)


def _shape_of_object(stream: JsonStream) -> tuple[str | None, bool]:
    """Of an object, under which key its records are, if they are under one, and whether it is a record itself."""
    keys: list[str] = []
    for name in stream.members():
        opening = stream.peek()
        if name in _MESSAGES:
            return None, True
        if opening in ("[", "{"):
            holds_records = is_by_id = False
            for place, inner in enumerate(stream.items() if opening == "[" else stream.members()):
                is_by_id = is_by_id or inner in _MESSAGES
                value = stream.value().value
                holds_records = holds_records or (place == 0 and _is_record(value))
            if is_by_id:
                return None, False
            keys += [name] * holds_records
        else:
            stream.skip()
    if len(keys) > 1:
        raise DataError(
            f"{stream.path} holds records under {_listed(keys)}: write the ones to train on into a file of their own"
        )
    return (keys[0] if keys else None), False


def _is_record(value: object) -> bool:
    return isinstance(value, dict) and any(key in value for key in _MESSAGES)


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
        text = line.decode().strip().removesuffix(",")
        is_object = isinstance(json.loads(text), dict)
    except UnicodeDecodeError as error:
        return RecordText(None, False, f"line {number:,} is not UTF-8 ({error.reason} at byte {error.start})")
    except (ValueError, RecursionError) as error:
        return RecordText(None, False, f"line {number:,} is not valid JSON ({error})")
    return RecordText(text, is_object)


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:most]) or "none at all"
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
