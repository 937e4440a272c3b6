"""Files of one's own in all shapes and under all endings; what cannot be read is named with what is expected."""

import base64
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.data import BadDataError, BadRecords, DataError, build_dataset
from utils.data.adapters.cleaning import UNANSWERED
from utils.data.adapters.custom import GREETING, JOINED


def record(number: int) -> dict:
    said = [{"from": "human", "value": f"Who is {number}?"}, {"from": "gpt", "value": f"Number {number}."}]
    return {"id": str(number), "conversations": said}


RECORDS = [record(0), record(1)]
LINES = [json.dumps(each) for each in RECORDS]
SHAPES = {
    "a list": json.dumps(RECORDS),
    "a list of several lines": json.dumps(RECORDS, indent=1),
    "lines": "\n".join(LINES),
    "lines with commas": ",\n".join(LINES) + ",\n",
    "under data": json.dumps({"version": 3, "tags": ["a", {"b": 1}], "data": RECORDS}),
    "under train": json.dumps({"train": RECORDS, "test": []}),
    "under a key, by their ids": json.dumps(
        {"about": {"by": "me"}, "data": {"a": RECORDS[0], "b": RECORDS[1]}}
    ),
    "by their ids": json.dumps({"a": RECORDS[0], "b": RECORDS[1]}),
}
OF_JSON_ALONE = {
    "objects behind each other": "".join(json.dumps(each, indent=1) for each in RECORDS),
    "objects with commas": ", ".join(json.dumps(each, indent=1) for each in RECORDS),
}
ENDINGS = (".json", ".JSON", ".jsonl", ".ndjson", ".json.gz", ".JSONL.GZ")


def write(path: Path, content: str) -> str:
    packed = path.suffix.lower() == ".gz"
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    return str(path)


def answers(name: str, bad: BadRecords | None = None) -> list[str]:
    return sorted(conversation.turns[0].answer for conversation in build_dataset([name], "nowhere", bad=bad))


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_shape_is_read_under_every_ending(tmp_path: Path, ending: str) -> None:
    is_lines = "l" in ending.lower().replace("json", "", 1) or "nd" in ending
    for number, (shape, content) in enumerate((SHAPES | OF_JSON_ALONE).items()):
        if is_lines and not shape.startswith(("a list", "lines")):
            continue
        name = write(tmp_path / f"my {number}{ending}", content)
        assert answers(name) == ["Number 0.", "Number 1."], shape


def test_a_bad_line_costs_one_record(tmp_path: Path) -> None:
    bad = BadRecords(max_fraction=1)
    assert answers(write(tmp_path / "my.ndjson", f"{LINES[0]}\n{LINES[1][:-1]}\n"), bad) == ["Number 0."]
    assert [each.place.index for each in bad.sorted()] == [1]


UNREADABLE = {
    "cut off": (
        "my.json",
        json.dumps(RECORDS)[:-9],
        rf"byte {len(LINES[0]) + 3} .*; write it again, or repair it",
    ),
    "numbers": (
        "my.json",
        "[1, 2]",
        r"2 values, none of them a record .*: expected a list of records, or one",
    ),
    "two lists": (
        "my.json",
        json.dumps({"a": RECORDS, "b": RECORDS}),
        'holds records under "a", "b": write the ones',
    ),
    "a page": ("my.jsonl", "<html>", "is a web page or XML, .*: write it again"),
    "not packed": ("my.json.gz", "PLAIN", "cannot read .*my.json.gz"),
    "packed, cut off": ("my.json.gz", "CUT", "cannot read .*my.json.gz"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_not_read_says_what_is_expected_of_own_files(tmp_path: Path, kind: str) -> None:
    name, content, expected = UNREADABLE[kind]
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / name
    plain = json.dumps(RECORDS).encode()
    path.write_bytes({"PLAIN": plain, "CUT": gzip.compress(plain)[:-20]}.get(content, content.encode()))
    with pytest.raises(DataError, match=expected) as caught:
        build_dataset([str(path)], tmp_path)
    with pytest.raises(BadDataError) as stopped:
        build_dataset([str(path)], tmp_path, bad=BadRecords())
    for message in (str(caught.value), str(stopped.value)):
        assert "fetch" not in message.lower() and "publish" not in message and "\n" not in message


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("x")])
def test_a_path_of_another_kind_is_named(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "my.txt")
    with pytest.raises(
        DataError, match=r"my\.txt: it exists, but .*: \.json, .*, a folder of \.parquet"
    ) as caught:
        build_dataset([str(tmp_path / "my.txt")], tmp_path)
    assert "aokvqa" not in str(caught.value)


def test_what_is_mended_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    human, gpt = record(0)["conversations"]
    dialogues = [[human, gpt], [gpt, human, gpt], [human, human, gpt, human], [gpt, human, gpt, human]]
    name = write(tmp_path / "my.json", json.dumps([{"conversations": said} for said in dialogues]))
    with caplog.at_level(logging.INFO):
        account = build_dataset([name], tmp_path).record_counts[name]
    counts = {GREETING: 2, JOINED: 1, UNANSWERED: 2}
    assert (account.used, account.bad, account.repairs) == (4, 0, counts)
    for repair, count in counts.items():
        assert f"{name}: {repair}, in {count} of 4 conversations" in caplog.messages
    caplog.clear()
    with caplog.at_level(logging.INFO):
        build_dataset([name], tmp_path)  # from the cache
    assert f"{name}: {JOINED}, in 1 of 4 conversations" in caplog.messages


def test_base64_is_never_printed(tmp_path: Path) -> None:
    encoded = base64.b64encode(bytes(range(256)) * 40).decode()
    asked = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A."}]
    records = [
        {"image": encoded, "conversations": asked[:1]},
        {"image": f"data:image/png;base64,{encoded}%", "conversations": asked},
        {"image": [encoded, encoded], "conversations": asked},
        {"video": encoded, "conversations": [{"from": "human", "value": "?"}, asked[1]]},
        {"conversations": [{"from": encoded, "value": "?"}, asked[1]]},
        {"conversations": [{"from": "human", "value": {"image": encoded}}, asked[1]]},
        {"conversations": encoded},
        encoded,
    ]
    bad = BadRecords(max_fraction=1)
    with pytest.raises(DataError) as caught:
        build_dataset([write(tmp_path / "my.json", json.dumps(records))], tmp_path, bad=bad)
    assert len(bad) == len(records)
    for message in [str(caught.value), *(each.reason for each in bad.sorted())]:
        assert encoded[:400] not in message and len(message) < 700
