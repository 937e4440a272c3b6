"""The stream takes what `json.loads` takes and nothing else, wherever the text is cut into pieces."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.data.readers import json_stream
from utils.data.readers.json_stream import JsonStream
from utils.data.spec import DataError

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
LISTS_AND_OBJECTS = st.lists(ANY_JSON, max_size=5) | st.dictionaries(st.text(), ANY_JSON, max_size=5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream") / "any.json"


def read(path: Path, content: bytes, chunk: int = 1 << 20) -> Any:
    """A list or an object read one value at a time; also its values' texts have to mean the same."""
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch, JsonStream(path) as stream:
        patch.setattr(json_stream, "_CHUNK", chunk)
        if stream.peek() == "[":
            values = [stream.value() for _ in stream.items()]
            result = [each.value for each in values]
        else:
            members = {name: stream.value() for name in stream.members()}
            values = list(members.values())
            result = {name: each.value for name, each in members.items()}
        stream.end()
    assert [json.loads(each.text) for each in values] == [each.value for each in values]
    return result


@settings(max_examples=60, deadline=None)
@given(
    value=LISTS_AND_OBJECTS,
    indent=st.sampled_from([None, 0, 3]),
    plain=st.booleans(),
    chunk=st.integers(min_value=1, max_value=40),
)
def test_it_reads_what_was_written_in_pieces_of_any_size(
    path: Path, value: Any, indent: int | None, plain: bool, chunk: int
) -> None:
    content = json.dumps(value, indent=indent, ensure_ascii=plain).encode(errors="replace")
    assert read(path, content, chunk) == json.loads(content)


def as_json_loads(content: bytes) -> Any:
    """What the standard library makes of it; None if it refuses it, or if it is no list or object."""
    try:
        value = json.loads(content.decode())
    except ValueError:
        return None
    return value if isinstance(value, list | dict) else None


@settings(max_examples=100, deadline=None)
@given(
    value=LISTS_AND_OBJECTS,
    place=st.floats(min_value=0, max_value=1),
    inserted=st.sampled_from(
        [b"", b",", b"]", b"}", b"[", b"{", b'"', b":", b"\\", b"1", b"e", b"\xff", b"\0", b"n"]
    ),
    removed=st.integers(min_value=0, max_value=3),
    chunk=st.integers(min_value=1, max_value=40),
)
@example(value=[1, 2], place=0.6, inserted=b"", removed=3, chunk=1)
def test_damage_is_refused_exactly_where_json_refuses_it(
    path: Path, value: Any, place: float, inserted: bytes, removed: int, chunk: int
) -> None:
    content = json.dumps(value, ensure_ascii=False).encode(errors="replace")
    at = int(place * len(content))
    content = content[:at] + inserted + content[at + removed :]
    expected = as_json_loads(content)
    if expected is None:
        with pytest.raises(DataError, match=r"any\.json"):
            read(path, content, chunk)
    else:
        assert read(path, content, chunk) == expected


def test_one_value_cannot_fill_the_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_LONGEST_VALUE", 1000)
    assert read(path, json.dumps(["x" * 900]).encode(), 100) == ["x" * 900]
    with pytest.raises(DataError, match=r"byte 1 .*a single value is longer than 1 kB"):
        read(path, json.dumps(["x" * 5000]).encode(), 100)
