"""Every record of every dataset is used once, left out by a rule, or bad: nothing is lost, nothing comes twice."""

import base64
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import utils.data.readers.image_archive  # noqa: F401 (MIMIC-IT's images are in archives)
from utils.data import BadRecords, build_dataset, split_dataset
from utils.data.registry import DATASETS

USED, BAD, LEFT_OUT, TOO_MANY = "used", "bad", "left out", "too many images"
MAX_IMAGES = 3

WriteFile = Callable[[Path, Sequence[str]], None]
"""Writes records with these fates, in order, into the data folder."""


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def encoded_picture() -> str:
    file = io.BytesIO()
    PIL.Image.new("RGB", (3, 2)).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def llava_record(number: int, fate: str) -> dict:
    pictures = MAX_IMAGES + 1 if fate == TOO_MANY else number % MAX_IMAGES
    said = [
        {"from": "human", "value": "<image>\n" * pictures + f"Question {number}?"},
        {"from": "gpt" if fate != BAD else "human", "value": f"Answer {number}."},
    ]
    return {"image": [f"{number}-{place}.jpg" for place in range(pictures)], "conversations": said}


def write_llava(root: Path, fates: Sequence[str]) -> None:
    records = [llava_record(number, fate) for number, fate in enumerate(fates)]
    half = len(records) // 2
    write_json(root / "llava" / "detail_23k.json", records[:half])
    write_json(root / "llava" / "complex_reasoning_77k.json", records[half:])


def write_own(root: Path, fates: Sequence[str]) -> None:
    records = [llava_record(number, fate) for number, fate in enumerate(fates)]
    for number, record in enumerate(records):
        record |= {"system": f"Be {number % 2}."} if number % 3 else {}
    write_json(root / "own.json", records)


def instructions(fates: Sequence[str], pictures: Callable[[int, str], list[str]]) -> dict:
    """Each is related to the one two places before it, where the pictures are the same."""
    return {
        "data": {
            f"X_{number}": {
                "image_ids": pictures(number, fate),
                "instruction": f"Question {number}?",
                "answer": f"Answer {number}." if fate != BAD else None,
                "rel_ins_ids": [f"X_{number - 2}", "X_unknown"],
            }
            for number, fate in enumerate(fates)
        }
    }


def write_stored(root: Path, fates: Sequence[str]) -> None:
    def pictures(number: int, fate: str) -> list[str]:
        return {
            LEFT_OUT: ["absent", "A_"],
            TOO_MANY: [*"ABCD"],
            BAD: ["A"],
            USED: ["A", "B", "absent"] if number % 3 else ["C"],
        }[fate]

    write_json(root / "MIMIC-IT" / "VST_instructions.json", instructions(fates, pictures))
    write_json(root / "MIMIC-IT" / "VST.json", dict.fromkeys("ABCD", encoded_picture()))


CASES: dict[str, tuple[WriteFile, tuple[str, ...]]] = {
    "llava": (write_llava, (USED, BAD, TOO_MANY)),
    "otter_mimicit_vst": (write_stored, (USED, BAD, LEFT_OUT, TOO_MANY)),
    "own.json": (write_own, (USED, BAD, TOO_MANY)),
}
"""Files side by side, partners that are lent, related records that are merged, two parts, system texts that differ.

test_against_2023.py accounts for a record of every kind in each of the thirteen formats.
"""


@pytest.fixture(autouse=True)
def not_brought_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small caches are made here, and none has to outlive a crash."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def used_records(dataset: Sequence) -> list[str]:
    """The records of all conversations."""
    return sorted(name for conversation in dataset for name in conversation.source.split(" + "))


def places(name: str, fates: Sequence[str], fate: str) -> list[str]:
    """The records that have a fate, as conversations name them."""
    files = ["own.json"] if name == "own.json" else [part.path for part in DATASETS[name].annotations]
    numbers = range(len(fates))
    if name == "llava":
        half = len(fates) // 2
        named = [(files[number >= half], number - half * (number >= half)) for number in numbers]
    else:
        named = [(files[0], number) for number in numbers]
    return sorted(f"{file}#{place}" for (file, place), each in zip(named, fates, strict=True) if each == fate)


def make_root(root: Path, name: str, fates: Sequence[str]) -> None:
    CASES[name][0](root, fates)
    if name in DATASETS:
        for part in DATASETS[name].images:
            if not part.is_store:
                (root / part.path).mkdir(parents=True, exist_ok=True)


sizes = st.sampled_from([0, 1, 2]) | st.integers(3, 40)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), size=sizes, concatenate=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_every_record_is_accounted_for(
    name: str, data: st.DataObject, size: int, concatenate: int, seed: int
) -> None:
    fates = data.draw(st.lists(st.sampled_from(CASES[name][1]), min_size=size, max_size=size))
    if BAD in fates and USED not in fates:
        fates[0] = USED  # bad data with nothing to use is refused
    with tempfile.TemporaryDirectory() as folder:
        make_root(Path(folder), name, fates)
        bad = BadRecords(max_fraction=1)
        arguments = {"concatenate": concatenate, "max_images": MAX_IMAGES, "seed": seed, "bad": bad}
        dataset = build_dataset([name], folder, **arguments)

        account, counts = dataset.record_counts[name], Counter(fates)
        assert account.records == size
        assert (account.used, account.bad, account.not_asked) == (counts[USED], counts[BAD], 0)
        assert sum(account.left_out.values()) == counts[LEFT_OUT] + counts[TOO_MANY]
        assert account.records == account.used + account.bad + sum(account.left_out.values())
        assert [str(each.place) for each in bad.sorted()] == sorted(
            places(name, fates, BAD), key=lambda place: (place.split("#")[0], int(place.split("#")[1]))
        )
        assert bad.total == counts[USED] + counts[BAD] or name.startswith("otter")  # of merged ones fewer

        expected = places(name, fates, USED)
        lengths = set()
        for epoch in (0, 1, 5, 0):
            dataset.set_epoch(epoch)
            conversations = list(dataset)
            assert used_records(conversations) == expected
            assert all(len(conversation.images) <= MAX_IMAGES for conversation in conversations)
            lengths.add(len(conversations))
        assert len(lengths) == 1
        parts = split_dataset(dataset, 0.7, seed)
        assert sorted(name for part in parts for name in used_records(part)) == expected


def test_a_number_of_samples_leaves_the_others_over(tmp_path: Path) -> None:
    make_root(tmp_path, "llava", [USED, TOO_MANY] * 10)
    dataset = build_dataset(["llava"], tmp_path, samples=4, max_images=MAX_IMAGES)
    account = dataset.record_counts["llava"]
    assert (account.records, account.used, account.not_asked) == (20, 4, 6)
    assert list(account.left_out.values()) == [10]


def test_images_that_a_store_lacks_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    make_root(tmp_path, "otter_mimicit_vst", [USED] * 3 + [LEFT_OUT])
    account = build_dataset(["otter_mimicit_vst"], tmp_path).record_counts["otter_mimicit_vst"]
    assert account.absent_images == 2 + 2 and account.conversations == 3
    assert (
        "otter_mimicit_vst: 1 of 4 records left out: none of its images is in the image store" in caplog.text
    )
    assert "4 images are named that are not in its image store" in caplog.text
