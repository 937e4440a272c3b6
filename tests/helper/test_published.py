"""The published layouts in miniature: files where their publishers have them, records as adapters expect them."""

import json
from pathlib import Path

import pytest

from helper.make_tiny_world import main as make_world
from helper.miniature.album import COLORS, SHAPES, SIDE, Album
from helper.miniature.published import write_layouts
from utils.data import DATASETS, build_dataset

RECORDS = 6
FILES = {
    "aokvqa/annotations/aokvqa_v1p0_train.json",
    "cc_sbu_align/filter_cap.json",
    "coco_caption/dataset.json",
    "llava/complex_reasoning_77k.json",
    "llava/conversation_58k.json",
    "llava/detail_23k.json",
    "MIMIC-IT/CGD_instructions.json",
    *(
        f"MIMIC-IT/{letters}{end}.json"
        for letters in ("SD", "SN", "TVC", "VST")
        for end in ("", "_instructions")
    ),
    "OCR_VQA/dataset.json",
    "SparklesDialogueCC/annotations/SparklesDialogueCC.json",
    "SparklesDialogueVG/annotations/SparklesDialogueVG.json",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts") / "data"
    assert write_layouts(folder, RECORDS, seed=3)
    return folder


def read(path: Path) -> object:
    return json.loads(path.read_text())


def files_in(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def test_files_are_where_their_publishers_have_them(root: Path) -> None:
    written = {
        name for name in files_in(root) if name.endswith(".json") and not name.startswith(("own/", "eval/"))
    }
    assert written == FILES | {"layouts.json"}


LEFT_OUT = {
    "llava_otter_blend": 2,
    **dict.fromkeys(("ocr_vqa", "otter_mimicit_tvc", "otter_mimicit_vst", "sparkles_dialogue"), 1),
}
"""Records that the published rules do not use."""
MOST_IMAGES = {"otter_mimicit_sd": 2, "otter_mimicit_sn": 3, "otter_mimicit_tvc": 3, "otter_mimicit_vst": 4}
OWN = ("llava.json", "sharegpt.jsonl", "openai.parquet", "saved")


@pytest.mark.parametrize("name", [*DATASETS, *OWN])
def test_records_are_conversations_whose_images_open(root: Path, name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path))
    path = str(root / "own" / name) if name in OWN else name
    dataset = build_dataset([path], root, image_folder=root / "own" / "images" if name in OWN else None)
    account = dataset.record_counts[path]
    assert (
        account.bad == 0
        and sum(account.left_out.values()) == LEFT_OUT.get(name, 0)
        and account.used >= RECORDS
    )
    counts = set()
    for conversation in dataset:
        assert not any("IMAGE#" in turn.question + turn.answer for turn in conversation.turns)
        assert {image.open().size for image in conversation.images} <= {(SIDE, SIDE)}
        counts.add(len(conversation.images))
    assert max(counts) == MOST_IMAGES.get(name, max(counts)) and (name == "llava.json" or min(counts) > 0)


def test_pairs_have_no_one_and_two_pictures_that_llava_knows(root: Path) -> None:
    known = {fields["id"] for fields in read(root / "llava/conversation_58k.json")}
    pairs = [
        tuple(name.removeprefix("CGD_IMG_") for name in fields["image_ids"])
        for fields in read(root / "MIMIC-IT/CGD_instructions.json")["data"].values()
    ]
    assert all((root / "coco/train2017" / f"{name}.jpg").exists() for pair in pairs for name in pair)
    assert {tuple(name in known for name in pair) for pair in pairs} == {
        (True, True),
        (True, False),
        (False, True),
    }


def test_the_evaluation_set_shows_several_images_and_has_references(root: Path) -> None:
    dialogues = read(root / "eval/miniature.json")
    assert len(dialogues) == RECORDS
    for turns in dialogues.values():
        names = [name for _, shown, _, _ in turns for name in shown.split()]
        assert len(names) in (2, 3) and all((root / "eval" / name).exists() for name in names)
        assert all(answer and kind in ("color", "shape", "exist") for _, _, answer, kind in turns)


def test_questions_have_the_answer_that_the_image_shows() -> None:
    album = Album([0])
    things = ["red circle", "blue square"]
    answers: dict[str, set[str]] = {}
    for _ in range(200):
        first, second = album.dialogue(things, rounds=2)
        assert (first.new, second.new) == (
            ("red circle",),
            ("blue square",),
        ) and "image 2" not in first.question
        for turn in (first, second):
            answers.setdefault(turn.question, set()).add(turn.answer)
    assert all(len(given) == 1 for given in answers.values())
    assert answers["what color is the circle in image 1?"] == {"red"}
    assert answers["what shape is in image 2?"] == {"square"}
    assert answers["is there a blue square in image 2?"] == {"yes"}
    assert answers["is there a blue square in image 1?"] == {"no"}
    [alone] = album.dialogue(["red circle"])
    assert "the image" in alone.question and alone.new == ("red circle",)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_show_a_shape_of_their_color(shape: str) -> None:
    for color, level in COLORS.items():
        pixels = set(Album([0]).image(f"{color} {shape}").get_flattened_data())
        assert len(pixels) == 2 and level in pixels


def test_the_same_seed_writes_the_same_files(root: Path, tmp_path: Path) -> None:
    assert write_layouts(tmp_path / "again", RECORDS, seed=3)
    assert files_in(tmp_path / "again").keys() == files_in(root).keys()
    differ = {
        name for name, content in files_in(tmp_path / "again").items() if content != files_in(root)[name]
    }
    assert differ <= {"own/saved/state.json"}  # a fingerprint of `datasets`' own
    assert write_layouts(tmp_path / "other", RECORDS, seed=4)
    assert files_in(tmp_path / "other")["llava/detail_23k.json"] != files_in(root)["llava/detail_23k.json"]


def test_the_command_writes_keeps_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["--records", "4", "--output", str(tmp_path / "data")]
    make_world(command)
    assert "data: drawn" in capsys.readouterr().out
    make_world(command)
    assert "already there, kept" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert make_world(["--output", str(tmp_path / "mine")]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert make_world(["--records", "3", "--output", str(tmp_path / "few")]) == 2
    assert "ask for at least 4" in capsys.readouterr().err
