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


def write_picture(path: Path, size: tuple[int, int] = (3, 2)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size).save(path)


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


def write_blend(root: Path, fates: Sequence[str]) -> None:
    def pictures(number: int, fate: str) -> list[str]:
        first = 9 if fate == LEFT_OUT else number % 2  # picture 9 has no partner
        return [f"CGD_IMG_{name:012d}" for name in (first, 2 + number)]  # no two alike: none is merged

    write_json(root / "MIMIC-IT" / "CGD_instructions.json", instructions(fates, pictures))
    files = "detail_23k", "complex_reasoning_77k", "conversation_58k"
    for number, name in enumerate(files):
        partner = llava_record(1, USED) | {"image": f"{number % 2:012d}.jpg"}
        write_json(root / "llava" / f"{name}.json", [partner, {"image": "no.jpg"}])


def write_sparkles(root: Path, fates: Sequence[str]) -> None:
    def record(number: int, fate: str, part: str) -> dict:
        count = MAX_IMAGES + 1 if fate == TOO_MANY else 1 + number % MAX_IMAGES
        images = [{"image_id": f"{number}{place}"} for place in range(count)]
        for image in images:
            write_picture(root / f"SparklesDialogue{part}" / "images" / f"{image['image_id']}.jpg")
        asked = {"role": "user", "content": f"Question {number}?", "images": images}
        answered = {"role": "assistant", "content": f"Answer {number}."}
        if fate == BAD:
            answered["images"] = images
        return {"dialogue": [asked, answered] + ([asked] if fate == LEFT_OUT else [])}

    for part, numbers in (("CC", range(0, len(fates), 2)), ("VG", range(1, len(fates), 2))):
        records = [record(number, fates[number], part) for number in numbers]
        write_json(root / f"SparklesDialogue{part}" / "annotations" / f"SparklesDialogue{part}.json", records)


CASES: dict[str, tuple[WriteFile, tuple[str, ...]]] = {
    "llava": (write_llava, (USED, BAD, TOO_MANY)),
    "llava_otter_blend": (write_blend, (USED, BAD, LEFT_OUT)),
    "otter_mimicit_vst": (write_stored, (USED, BAD, LEFT_OUT, TOO_MANY)),
    "sparkles_dialogue": (write_sparkles, (USED, BAD, LEFT_OUT, TOO_MANY)),
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
    """The records of all conversations; what the blend borrows from LLaVA apart."""
    names = [name for conversation in dataset for name in conversation.source.split(" + ")]
    is_blend = any(name.startswith("MIMIC-IT/CGD") for name in names)
    return sorted(name for name in names if not (is_blend and name.startswith("llava")))


def places(name: str, fates: Sequence[str], fate: str) -> list[str]:
    """The records that have a fate, as conversations name them."""
    files = ["own.json"] if name == "own.json" else [part.path for part in DATASETS[name].annotations]
    numbers = range(len(fates))
    if name == "llava":
        half = len(fates) // 2
        named = [(files[number >= half], number - half * (number >= half)) for number in numbers]
    elif name == "sparkles_dialogue":
        named = [(files[number % 2], number // 2) for number in numbers]
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


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 20), concatenate=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_all_datasets_together_lose_nothing(size: int, concatenate: int, seed: int) -> None:
    names = [name for name in CASES if name != "llava"]  # the blend has its files
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            make_root(Path(folder), name, [USED] * size)
        dataset = build_dataset(names, folder, concatenate=concatenate, max_images=MAX_IMAGES, seed=seed)
        borrowed = ("llava/",)
        used = [name for name in used_records(dataset) if not name.startswith(borrowed)]
        assert used == sorted(place for name in names for place in places(name, [USED] * size, USED))
        assert dataset.records_per_dataset == dict.fromkeys(names, size)


def test_a_number_of_samples_leaves_the_others_over(tmp_path: Path) -> None:
    make_root(tmp_path, "sparkles_dialogue", [USED, LEFT_OUT] * 10)
    account = build_dataset(["sparkles_dialogue"], tmp_path, samples=4).record_counts["sparkles_dialogue"]
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
