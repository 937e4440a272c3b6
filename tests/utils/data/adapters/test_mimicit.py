"""MIMIC-IT: related instructions share a conversation, each once; pictures that a store lacks are left out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.conversation import ConversationError
from utils.data.adapters.mimicit import (
    otter_mimicit,
    related_instructions,
    stored_image_ids,
)
from utils.data.spec import PictureStore, RawRecord


def instruction(name: str, pictures: Sequence[str] = ("A", "B"), related: Sequence[str] = ()) -> dict:
    return {
        "id": name,
        "image_ids": list(pictures),
        "instruction": f"question {name}",
        "answer": f"answer {name}",
        "rel_ins_ids": list(related),
    }


def groups(records: Sequence[object]) -> list[list[str]]:
    arranged = related_instructions([records])
    names = [record["id"] if isinstance(record, dict) else "?" for record in records]
    return [[names[index] for index in arranged[number]] for number in range(len(arranged))]


def test_other_pictures_another_order_and_unknown_ids_do_not_join() -> None:
    assert groups([instruction("1", "AB", ["2"]), instruction("2", "AC", ["1"])]) == [["1"], ["2"]]
    assert groups([instruction("1", "AB", ["2"]), instruction("2", "BA")]) == [
        ["1"],
        ["2"],
    ]  # "the first one"
    assert groups([instruction("1", related=["9"])]) == [["1"]]


@pytest.mark.parametrize(
    "broken",
    [
        {"id": "2", "image_ids": ["A", "B"], "rel_ins_ids": ["1"]},
        {**instruction("2", related=["1"]), "answer": " "},
        {**instruction("2", related=["1"]), "instruction": None},
        {**instruction("2", related=["1"]), "image_ids": "AB"},
        {**instruction("2", related=["1"]), "rel_ins_ids": 7},
        {**instruction("2"), "id": None},
        "no record",
        None,
    ],
)
def test_what_cannot_be_read_does_not_spoil_its_relations(broken: object) -> None:
    arranged = related_instructions([[instruction("1", related=["3"]), broken, instruction("3")]])
    assert sorted(arranged[number].tolist() for number in range(len(arranged))) == [[0, 2], [1]]


@given(
    st.integers(0, 30),
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29))),
    st.lists(st.sampled_from("AB"), min_size=30, max_size=30),
)
def test_each_instruction_is_used_exactly_once(
    size: int, relations: list[tuple[int, int]], pictures: list[str]
) -> None:
    related: dict[int, list[str]] = {}
    for one, other in relations:
        related.setdefault(one, []).append(str(other))
    records = [instruction(str(n), pictures[n], related.get(n, [])) for n in range(size)]
    arranged = related_instructions([records])
    assert sorted(arranged.members.tolist()) == list(range(size))
    assert np.array_equal(arranged.own, np.diff(arranged.borders)) and (arranged.own > 0).all()
    for number in range(len(arranged)):
        assert len({pictures[index] for index in arranged[number]}) == 1


def raw(
    *instructions: dict, store: dict[str, bytes] | None = None, seed: int = 0, folder: Path = Path("coco")
) -> RawRecord:
    place = folder if store is None else PictureStore("MIMIC-IT/SD.json", store)
    records = [
        RawRecord(fields, f"x.json#{number}", (place,), np.random.default_rng(seed))
        for number, fields in enumerate(instructions)
    ]
    first, *others = records
    return RawRecord(first.fields, first.source, (place,), first.rng, 0, tuple(others))


def test_ids_that_the_store_lacks_are_left_out() -> None:
    record = raw(instruction("1", ["A", "A1", "B", "A"]), store={"A": b"a", "B": b"b"})
    conversation = otter_mimicit(record)
    assert [image.name for image in conversation.images] == [f"MIMIC-IT/SD.json#{name}" for name in "ABA"]
    assert conversation.images[1].source.read() == b"b"
    assert len(stored_image_ids(record)) == 4


@pytest.mark.parametrize("pictures", [[], None, "AB", [1, 2]])
def test_image_ids_that_are_none_are_named(pictures: object) -> None:
    with pytest.raises(ConversationError, match=r"x\.json#0: expected a list of image ids"):
        otter_mimicit(raw({**instruction("1"), "image_ids": pictures}, store={"A": b""}))
