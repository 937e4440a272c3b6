"""Annotation files as memory-mapped Arrow: read once per machine, then shared by all processes and workers.

A file is converted the first time it is used, into a cache folder outside the data folder, as it streams by:
so neither the first nor a later use needs memory for more than a few records at a time. Records of JSON
differ in their fields, so each is kept as the text it was, and parsed when it is asked for. Published files have one
shape each, which is known; of a file of one's own the shape is looked up in it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from utils.commands import in_units, progress
from utils.data.readers.conversion_cache import ArrowRows, Source, batched, cached, write_batches
from utils.data.readers.json_stream import (
    FETCH,
    READ_ERRORS,
    REWRITE,
    JsonStream,
    Value,
    is_packed,
    is_parquet,
    open_unpacked,
    parquet_files,
    refuse_other_kinds,
)
from utils.data.spec import DataError
from utils.distributed import get_logger
from utils.plugins import wing

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


logger = get_logger(__name__)

RECORDS = "records.arrow"
_UNPACKED = 8  # times the bytes of a .gz, roughly
_PUBLISHED = "it is not the published file, fetch it again; or its records are under a key of their own"
_OWN = (
    'expected a list of records, or one a line, each as {"conversations": [...]} or {"messages": [...]}'
    " (docs/own-data.md)"
)
_SCHEMA = pa.schema({"record": pa.large_string(), "problem": pa.large_string()})


@dataclass(frozen=True)
class Unusable:
    """What stands in the place of a record that cannot be read, and why; no adapter takes it."""

    reason: str


class Records(Sequence[dict[str, Any]]):
    """The records of one annotation file, each read when it is asked for.

    What is in the place of a record comes as it is, also where it is no object: a number, a text, or
    `Unusable`. So the place of every record stays the same, and one bad record costs the others nothing.
    """

    def __init__(self, rows: Sequence[Any], read: Callable[[Any], Any]) -> None:
        """`read` makes a record of a row, and can be sent to other processes."""
        self._rows, self._read = rows, read

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._read(self._rows[int(index) % len(self)])

    def __iter__(self) -> Iterator[Any]:
        return map(self._read, self._rows)


def _parsed(row: dict[str, Any]) -> Any:
    """A record that is kept as JSON text."""
    if row["problem"] is not None:
        return Unusable(row["problem"])
    try:
        return json.loads(row["record"])
    except RecursionError:
        return Unusable("its lists and objects are nested too deeply")


def _of_table(row: pa.Table) -> dict[str, Any]:
    """A record of a dataset that `datasets` has saved; its pictures are left encoded."""
    return row.to_pylist()[0]


def open_records(path: Path, key: str | None = None, is_own: bool = False) -> Sequence[dict[str, Any]]:
    """The records of an annotation file, from the cache, where they are put first if the file is new or changed.

    Args:
        path: a JSON list of objects; a JSON object of objects, whose records get their key as "id"; a file
            named .jsonl with one object a line; a parquet file, or a folder of several; a folder saved by
            `datasets`.
        key: the records are a list or an object under this key of one JSON object.
        is_own: it is no published file: JSON may be in any shape of `read_own`, also packed as .gz.

    Processes that start together wait for the one that converts. Raises `DataError` for a file that cannot be
    read to its end or holds no such records, and for a cache folder that cannot be written.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file; check its name, or fetch it")
    shards = parquet_files(path) if path.is_dir() else [path]
    if not shards:
        return Records(_open_saved(path), _of_table)
    if is_parquet(shards[0]):
        return wing("utils.data.readers.parquet.open_parquet", str(path))(path, is_own)
    if is_own:
        read, variant, expected = read_own, "own", _OWN
    elif path.suffix == ".jsonl":
        read, variant, expected = read_json_lines, "lines", _PUBLISHED
    else:
        read, variant, expected = partial(read_json, key=key), f"json {key}", _PUBLISHED
    share = _UNPACKED if is_packed(path) else 1.1
    write = partial(_write_texts, path, read, expected)
    entry = cached(Source(path, (path,), variant), "records", write, share)
    return Records(ArrowRows(entry / RECORDS), _parsed)


def _write_texts(
    path: Path,
    read: Callable[[Path, Callable[[int], object]], Iterator[RecordText]],
    expected: str,
    folder: Path,
) -> None:
    count = objects = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count, objects
        for record in read(path, advance):
            count += 1
            objects += record.is_object
            yield {"record": record.text, "problem": record.problem}

    size = path.stat().st_size * (_UNPACKED if is_packed(path) else 1)
    with progress(path.name, size, "B") as advance:
        batches = batched(rows(), _SCHEMA, lambda row: len(row["record"] or ""))
        write_batches(folder / RECORDS, _SCHEMA, batches)
    if count and not objects:
        raise DataError(f"{path} holds {count:,} values, none of them a record (a JSON object): {expected}")
    logger.info("%s: %s records, %s", path, f"{count:,}", in_units(path.stat().st_size))


def _open_saved(path: Path) -> datasets.Dataset:
    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path} is not a folder that `datasets` saved whole, by save_to_disk"
            f" ({' '.join(str(error).split())}); save it again, or name a .json, .jsonl or .parquet file"
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if len(saved) != 1:
            raise DataError(
                f"{path} holds the splits {', '.join(saved)}; name one: {path / next(iter(saved))}"
            )
        saved = next(iter(saved.values()))
    return saved.with_format("arrow")  # pictures stay encoded, rows come without a copy
