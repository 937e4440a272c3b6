"""The blend: LLaVA's conversations about a pair's pictures in the pair's order, then the pair's rounds."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from utils.conversation import Conversation
from utils.data.adapters.mimicit import llava_otter_blend, pairs_with_partners
from utils.data.spec import LeftOut, RawRecord

COCO = Path("coco")
FIRST, SECOND = "000000000001", "000000000010"


def instruction(name: str, pictures: Sequence[str] = (FIRST, SECOND), related: Sequence[str] = ()) -> dict:
    return {
        "id": name,
        "image_ids": [f"CGD_IMG_{picture}" for picture in pictures],
        "instruction": f"both {name}?",
        "answer": f"answer {name}",
        "rel_ins_ids": list(related),
    }


def dialogue(name: str, picture: str, rounds: int = 1) -> dict:
    said = []
    for turn in range(rounds):
        tag = "<image>\n" if turn == 0 else ""
        said += [{"from": "human", "value": f"{tag}{name}, {turn}?"}, {"from": "gpt", "value": f"{name}."}]
    return {"id": picture, "image": f"{picture}.jpg", "conversations": said}


def raw(instructions: Sequence[dict], dialogues: Sequence[dict], seed: int = 0) -> RawRecord:
    rng = np.random.default_rng(seed)
    pair = [RawRecord(each, f"CGD#{n}", (COCO,), rng, 0) for n, each in enumerate(instructions)]
    llava = [RawRecord(each, f"llava#{n}", (COCO,), rng, 1 + n % 3) for n, each in enumerate(dialogues)]
    return RawRecord(pair[0].fields, "CGD#0", (COCO,), rng, 0, (*pair[1:], *llava))


def blended(instructions: Sequence[dict], dialogues: Sequence[dict], seeds: int = 60) -> list[Conversation]:
    return [llava_otter_blend(raw(instructions, dialogues, seed)) for seed in range(seeds)]


def shape(conversation: Conversation) -> list[tuple[str, list[str]]]:
    return [(turn.question, [image.source.stem for image in turn.images]) for turn in conversation.turns]


def test_a_pair_with_no_partner_and_one_with_the_last_alone_are_left_out() -> None:
    for partners in ([], [dialogue("b", SECOND)]):
        assert llava_otter_blend(raw([instruction("1")], partners)) == LeftOut(
            "an image before the last has no conversation of LLaVA's"
        )


def test_what_is_drawn() -> None:
    names = ["a", "b", "c"]
    partners = [dialogue(name, FIRST) for name in names] + [dialogue(name.upper(), SECOND) for name in names]
    instructions = [instruction("1", related=["2", "3"]), instruction("2"), instruction("3")]
    counts = Counter()
    for conversation in blended(instructions, partners, seeds=300):
        questions = [turn.question for turn in conversation.turns]
        kinds = "".join(
            "p" if each[:4] == "both" else "f" if each[0].islower() else "s" for each in questions
        )
        assert kinds == "".join(
            sorted(kinds, key="fsp".index)
        )  # the first picture's, the second's, the pair's
        assert len(set(questions)) == len(questions)
        counts.update(f"{kind}{kinds.count(kind)}" for kind in "fsp")
        assert [image.source.stem for image in conversation.images] == [FIRST, SECOND]
        shown = [bool(turn.images) for turn in conversation.turns]
        assert shown[0] and shown[kinds.index("s" if "s" in kinds else "p")] and sum(shown) == 2
    assert set(counts) == {"f1", "f2", "f3", "s0", "s1", "s2", "s3", "p1", "p2", "p3"}


def test_three_pictures_need_partners_of_the_first_two() -> None:
    third = "000000000100"
    three = [instruction("1", [FIRST, SECOND, third])]
    assert isinstance(llava_otter_blend(raw(three, [dialogue("a", FIRST), dialogue("c", third)])), LeftOut)
    for conversation in blended(three, [dialogue("b", SECOND), dialogue("a", FIRST)]):
        assert shape(conversation) == [("a, 0?", [FIRST]), ("b, 0?", [SECOND]), ("both 1?", [third])]


def arranged(*files: Sequence[object]) -> tuple[list[list[int]], list[int]]:
    arrangement = pairs_with_partners(files)
    return [arrangement[number].tolist() for number in range(len(arrangement))], arrangement.own.tolist()


def test_pairs_get_their_partners_from_all_files() -> None:
    instructions = [instruction("1", related=["2"]), instruction("2"), instruction("3", [SECOND, FIRST])]
    files = [dialogue("a", FIRST)], [dialogue("b", SECOND), dialogue("c", FIRST)], [dialogue("d", "7")]
    assert arranged(instructions, *files) == ([[0, 1, 3, 5, 4], [2, 4, 3, 5]], [2, 1])


@pytest.mark.parametrize(
    "broken",
    [
        {"image": f"{FIRST}.jpg"},
        {**dialogue("a", FIRST), "conversations": []},
        {**dialogue("a", FIRST), "image": [f"{FIRST}.jpg", f"{SECOND}.jpg"]},
        {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "text only"}]},
        "no record",
    ],
)
def test_partners_that_cannot_be_read_lend_nothing(broken: object) -> None:
    assert arranged([instruction("1")], [broken], [dialogue("a", FIRST)], []) == ([[0, 2]], [1])


def test_pairs_that_cannot_be_read_stand_alone() -> None:
    assert arranged(["?", {"id": "1"}, instruction("2", ["", FIRST])], [dialogue("a", FIRST)]) == (
        [[0], [1], [2]],
        [1, 1, 1],
    )
