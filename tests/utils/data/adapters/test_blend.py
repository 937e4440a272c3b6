"""The blend: LLaVA's conversations about a pair's pictures in the pair's order, then the pair's rounds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

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


def test_a_pair_with_no_partner_and_one_with_the_last_alone_are_left_out() -> None:
    for partners in ([], [dialogue("b", SECOND)]):
        assert llava_otter_blend(raw([instruction("1")], partners)) == LeftOut(
            "an image before the last has no conversation of LLaVA's"
        )


def arranged(*files: Sequence[object]) -> tuple[list[list[int]], list[int]]:
    arrangement = pairs_with_partners(files)
    return [arrangement[number].tolist() for number in range(len(arrangement))], arrangement.own.tolist()


def test_pairs_get_their_partners_from_all_files() -> None:
    instructions = [instruction("1", related=["2"]), instruction("2"), instruction("3", [SECOND, FIRST])]
    files = [dialogue("a", FIRST)], [dialogue("b", SECOND), dialogue("c", FIRST)], [dialogue("d", "7")]
    assert arranged(instructions, *files) == ([[0, 1, 3, 5, 4], [2, 4, 3, 5]], [2, 1])
