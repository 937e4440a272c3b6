"""Small samples of the thirteen published formats, and the conversations that the code of 2023 made of them.

Each expected conversation is what that code gives, worked out by hand from its rules; where ours is another on
purpose, the row of docs/differences.md is named beside it.
"""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

import utils.data.readers.image_archive  # noqa: F401 (MIMIC-IT's images are in archives)
from utils.conversation import Conversation
from utils.data import DATASETS, BadRecords, build_dataset
from utils.data.adapters.captions import QUESTIONS
from utils.data.adapters.vqa import WHY

EPOCHS = 40  # in each what is drawn is drawn anew

Round = tuple[str, ...]
"""A question, its answer, and the names of the images that come with it, without endings."""


def llava_record(name: str, *said: str) -> dict:
    roles = ("human", "gpt")
    messages = [{"from": roles[place % 2], "value": text} for place, text in enumerate(said)]
    return {"id": name, "image": f"{name}.jpg", "conversations": messages}


LLAVA = {
    "llava/detail_23k.json": [
        llava_record("1", "Describe it.\n<image>", "A dog."),
        llava_record("2", "<image>\nWhat is\nNASA's?", "Two.\nLines."),  # Line breaks
        llava_record("3", "No tag here.", "Shown all the same."),
    ],
    "llava/complex_reasoning_77k.json": [
        llava_record("4", "<image>\nWhy?", "So.", "Really?", "Yes.", "Thanks.")
    ],
}
LLAVA_DIAL = {
    "llava/conversation_58k.json": [
        llava_record("1", "What is it?\n<image>", "A dog.", "Old?", "Yes."),
        llava_record("2", "<image>\nWhat is it?", "A cat.", "Thanks."),
        llava_record("3", "Hello.", "Hi.", "And here?\n<image>", "A sofa."),
    ]
}


def instruction(name: str, images: list[str], *related: str, question: str = "") -> dict:
    return {
        "image_ids": images,
        "instruction": question or f"Question {name}?",
        "answer": f"Answer {name}.",
        "rel_ins_ids": list(related),
    }


def instructions(prefix: str = "", *, most: bool = False) -> dict:
    a, b = f"{prefix}A", f"{prefix}B"
    data = {
        "1": instruction("1", [a, b], "2"),
        "2": instruction("2", [a, b], "1", question="What of <image> and <image>\nis it?"),
        "3": instruction("3", [b, a]),
        "4": instruction("4", [a, b], "unknown"),
    }
    if not prefix:  # image stores
        data["5"] = instruction("5", ["missing", b])
        data["6"] = instruction("6", ["missing"])
    if most:
        data["7"] = instruction("7", [a] * 9)
        data["8"] = instruction("8", [*[b] * 8, "missing"])
    return {"data": data}


Q1, Q2 = ("Question 1?", "Answer 1."), ("What of and is it?", "Answer 2.")
JOINED = {((*Q1, "A", "B"), Q2), ((*Q2, "A", "B"), Q1)}
PAIRS = [JOINED, {(("Question 3?", "Answer 3.", "B", "A"),)}, {(("Question 4?", "Answer 4.", "A", "B"),)}]
OF_STORE = [*PAIRS, {(("Question 5?", "Answer 5.", "B"),)}]
LIMITED = [*OF_STORE, {(("Question 8?", "Answer 8.", *"BBBBBBBB"),)}]


def store(letters: str) -> dict:
    return {f"MIMIC-IT/{letters}.json": {name: encoded_image() for name in "AB"}}


def encoded_image() -> str:
    file = io.BytesIO()
    PIL.Image.new("RGB", (3, 2)).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def said(role: str, content: str, *images: int) -> dict:
    return {
        "role": role,
        "content": content,
        **({"images": [{"image_id": each} for each in images]} if images else {}),
    }


TAG = "<Img><ImageHere></Img>"
SPARKLES = [
    {
        "dialogue": [
            said("user", f"is IMAGE#1{TAG} like IMAGE#2{TAG}? say why.", 1, 2),
            said("assistant", "IMAGE#2 is older. it sleeps."),
            said("user", f"and IMAGE#3{TAG}?", 3),
            said("assistant", "no. IMAGE#1 is."),
        ]
    },
    {"dialogue": [said("user", f"IMAGE#1{TAG}?", 1), said("assistant", "yes."), said("user", "thanks.")]},
    {"dialogue": [said("assistant", "hello."), said("user", "hi.")]},
    {"dialogue": [said("user", f"IMAGE#9{TAG}?", 9), said("assistant", "no such file.")]},
    {"dialogue": [said("user", "many", *[1] * 9), said("assistant", "images.")]},
]


def named(first: str, second: str, third: str) -> tuple[Round, ...]:
    capital = second[0].upper() + second[1:]
    return (
        (f"Is {first} like {second}? Say why.", f"{capital} is older. It sleeps.", "1", "2"),
        (f"And {third}?", f"No. {first[0].upper() + first[1:]} is.", "3"),
    )


BLEND = {
    "llava/detail_23k.json": [llava_record("A", "<image>\nD?", "d.")],
    "llava/complex_reasoning_77k.json": [],
    "llava/conversation_58k.json": [llava_record("B", "B?\n<image>", "b.", "More?", "m.")],
    "MIMIC-IT/CGD_instructions.json": {
        "data": {
            "1": instruction("1", ["CGD_IMG_A", "CGD_IMG_B"], "2"),
            "2": instruction("2", ["CGD_IMG_A", "CGD_IMG_B"]),
            "3": instruction("3", ["CGD_IMG_C", "CGD_IMG_A"]),  # LLaVA has nothing about C
        }
    },
}
ONE, TWO = ("Question 1?", "Answer 1."), ("Question 2?", "Answer 2.")
BLENDED = {
    (("D?", "d.", "A"), *about_b, (*first, *(() if about_b else ("B",))), *others)
    for about_b in ((), (("B?", "b.", "B"), ("More?", "m.")))
    for first, *others in ((ONE,), (TWO,), (ONE, TWO), (TWO, ONE))
}

# Of each name: its files, the conversations (of each all that may be drawn), and how many records are left out.
CASES: dict[str, tuple[dict[str, Any], list[set], int]] = {
    "aokvqa": (
        {
            "aokvqa/annotations/aokvqa_v1p0_train.json": [
                {
                    "image_id": 42,
                    "question": "What is it for?",
                    "choices": ["rain", "sun"],
                    "correct_choice_idx": 1,
                    "rationales": ["The sky is clear.", "People wear sunglasses."],
                }
            ]
        },
        # "Because" stood before the reasons: Reasons of A-OKVQA
        [
            {
                (
                    (
                        "What is it for? WHY",
                        "The answer is sun. The sky is clear. People wear sunglasses.",
                        f"{42:012d}",
                    ),
                )
            }
        ],
        0,
    ),
    "coco_caption": (
        {
            "coco_caption/dataset.json": {
                "images": [
                    {"filename": "1.jpg", "split": "test", "sentences": [{"raw": "One."}, {"raw": "Two."}]},
                    {"filename": "2.jpg", "split": "train", "sentences": {"raw": "Alone."}},
                ]
            }
        },
        [{(("DESCRIBE", "One.", "1"),), (("DESCRIBE", "Two.", "1"),)}, {(("DESCRIBE", "Alone.", "2"),)}],
        0,
    ),
    "llava": (
        LLAVA,
        [
            {(("Describe it.", "A dog.", "1"),)},
            {(("What is NASA's?", "Two.\nLines.", "2"),)},
            {(("No tag here.", "Shown all the same.", "3"),)},
            {(("Why?", "So.", "4"),)},
        ],
        0,
    ),
    "llava_dial": (
        LLAVA_DIAL,
        [
            {(("What is it?", "A dog.", "1"), ("Old?", "Yes."))},
            {(("What is it?", "A cat.", "2"),)},
            {(("Hello.", "Hi."), ("And here?", "A sofa.", "3"))},
        ],
        0,
    ),
    "llava_otter_blend": (BLEND, [BLENDED], 1),
    "minigpt4": (
        {"cc_sbu_align/filter_cap.json": {"annotations": [{"image_id": "7", "caption": "A lighthouse."}]}},
        [{(("DESCRIBE", "A lighthouse.", "7"),)}],
        0,
    ),
    "ocr_vqa": (
        {
            "OCR_VQA/dataset.json": {
                "1": {
                    "imageURL": "http://x.org/a.b/51.png",
                    "questions": ["Who?", "What?"],
                    "answers": ["Ann", "Tide"],
                },
                "2": {"imageURL": "http://x.org/1.gif", "questions": ["Who?"], "answers": ["Nobody"]},
            }
        },
        [{(("Who?", "Ann", "1"),), (("What?", "Tide", "1"),)}],
        1,
    ),
    "otter_mimicit_cgd": ({"MIMIC-IT/CGD_instructions.json": instructions("CGD_IMG_")}, PAIRS, 0),
    "otter_mimicit_sd": ({"MIMIC-IT/SD_instructions.json": instructions()} | store("SD"), OF_STORE, 1),
    **{
        f"otter_mimicit_{letters.lower()}": (
            {f"MIMIC-IT/{letters}_instructions.json": instructions(most=True)} | store(letters),
            LIMITED,
            2,
        )
        for letters in ("SN", "TVC", "VST")
    },
    "sparkles_dialogue": (
        {
            "SparklesDialogueCC/annotations/SparklesDialogueCC.json": SPARKLES,
            "SparklesDialogueVG/annotations/SparklesDialogueVG.json": [],
        },
        [
            {
                named("image a", "image b", "image c"),
                named("image A", "image B", "image C"),
                named("the first image", "the second image", "the third image"),
            }
        ],
        4,
    ),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder with every image that the samples name."""
    root = tmp_path / "data"
    folders = (
        "coco/train2017",
        "coco/2014",
        "cc_sbu_align/image",
        "SparklesDialogueCC/images",
        "SparklesDialogueVG/images",
    )
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for name in (*"1234567ABC", f"{42:012d}"):
            PIL.Image.new("RGB", (3, 2)).save(root / folder / f"{name}.jpg")
    (root / "OCR_VQA" / "images").mkdir(parents=True)
    PIL.Image.new("RGB", (3, 2)).save(root / "OCR_VQA" / "images" / "1.png")
    PIL.Image.new("RGB", (1, 1)).save(root / "OCR_VQA" / "images" / "2.gif")
    return root


def rounds(conversation: Conversation) -> tuple[Round, ...]:
    """The rounds, pools of wordings in capitals."""
    return tuple(
        (_pooled(turn.question), turn.answer, *map(_name, turn.images)) for turn in conversation.turns
    )


def _pooled(question: str) -> str:
    asked, mark, why = question.partition("? ")
    if mark and why in WHY:
        return f"{asked}? WHY"
    return "DESCRIBE" if question in QUESTIONS else question


def _name(image: Any) -> str:
    return Path(re.sub(r".*#", "", image.name)).stem


def test_every_name_has_a_sample() -> None:
    assert CASES.keys() == DATASETS.keys()


@pytest.mark.parametrize("name", CASES)
def test_samples_become_the_conversations_of_2023(root: Path, name: str) -> None:
    files, expected, left_out = CASES[name]
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(json.dumps(content))
    bad = BadRecords(max_fraction=1)
    dataset = build_dataset([name], root, bad=bad)
    drawn: list[set] = [set() for _ in expected]
    for epoch in range(EPOCHS):
        dataset.set_epoch(epoch)
        made = [rounds(conversation) for conversation in dataset]
        assert len(made) == len(expected)
        for each in made:
            (place,) = [number for number, options in enumerate(expected) if each in options]
            drawn[place].add(each)
    assert drawn == expected
    assert sum(dataset.record_counts[name].left_out.values()) == left_out and not bad.sorted()
