"""The published layouts in miniature: files where their publishers have them, records as adapters expect them."""

import base64
import io
import json
from pathlib import Path

import datasets
import PIL.Image
import pyarrow.parquet as pq
import pytest

from helper.make_tiny_world import main as make_world
from helper.miniature.album import COLORS, SHAPES, SIDE, Album
from helper.miniature.published import write_layouts
from utils.conversation import Conversation
from utils.data.adapters.captions import coco_caption, minigpt4
from utils.data.adapters.custom import custom
from utils.data.adapters.llava import llava, llava_dial
from utils.data.adapters.sparkles import sparkles_dialogue
from utils.data.adapters.vqa import aokvqa, ocr_vqa
from utils.data.spec import LeftOut, RawRecord

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


def opened(conversation: Conversation | LeftOut) -> Conversation:
    """The conversation, all of whose pictures could be read."""
    assert isinstance(conversation, Conversation), conversation
    assert {image.open().size for image in conversation.images} <= {(SIDE, SIDE)}
    return conversation


def test_files_are_where_their_publishers_have_them(root: Path) -> None:
    written = {
        name for name in files_in(root) if name.endswith(".json") and not name.startswith(("own/", "eval/"))
    }
    assert written == FILES | {"layouts.json"}


@pytest.mark.parametrize(
    ("file", "key", "folders", "adapter"),
    [
        ("llava/detail_23k.json", None, ["coco/train2017"], llava),
        ("llava/complex_reasoning_77k.json", None, ["coco/train2017"], llava),
        ("llava/conversation_58k.json", None, ["coco/train2017"], llava_dial),
        ("aokvqa/annotations/aokvqa_v1p0_train.json", None, ["coco/train2017"], aokvqa),
        ("coco_caption/dataset.json", "images", ["coco/2014"], coco_caption),
        ("cc_sbu_align/filter_cap.json", "annotations", ["cc_sbu_align/image"], minigpt4),
    ],
)
def test_each_record_is_a_conversation_about_a_picture(
    root: Path, file: str, key: str | None, folders: list[str], adapter: object
) -> None:
    records = read(root / file)
    records = records if key is None else records[key]
    assert len(records) == RECORDS
    for fields in records:
        record = RawRecord(fields, file, tuple(root / folder for folder in folders))
        assert len(opened(adapter(record)).images) == 1


def test_covers_bear_the_endings_of_their_urls_and_one_is_a_pixel(root: Path) -> None:
    covers = read(root / "OCR_VQA/dataset.json")
    made = {
        name: ocr_vqa(RawRecord({"id": name, **fields}, "OCR_VQA", (root / "OCR_VQA/images",)))
        for name, fields in covers.items()
    }
    assert isinstance(made.pop("lost"), LeftOut)
    endings = {Path(opened(conversation).images[0].source).suffix for conversation in made.values()}
    assert endings == {".jpg", ".png", ".gif"} and len(made) == RECORDS


@pytest.mark.parametrize(("part", "left_out"), [("CC", 1), ("VG", 0)])
def test_sparkles_dialogues_speak_of_their_pictures(root: Path, part: str, left_out: int) -> None:
    folder = root / f"SparklesDialogue{part}"
    dialogues = read(folder / "annotations" / f"SparklesDialogue{part}.json")
    made = [sparkles_dialogue(RawRecord(fields, part, (folder / "images",))) for fields in dialogues]
    conversations = [opened(each) for each in made if not isinstance(each, LeftOut)]
    assert len(conversations) == RECORDS // 2 and len(made) - len(conversations) == left_out
    assert all(2 <= len(each.images) <= 3 for each in conversations)
    assert not any("IMAGE#" in turn.question + turn.answer for each in conversations for turn in each.turns)


@pytest.mark.parametrize(("letters", "images"), [("SD", 2), ("SN", 3), ("TVC", 3), ("VST", 4)])
def test_pictures_of_mimic_it_stand_in_one_object(root: Path, letters: str, images: int) -> None:
    store = read(root / f"MIMIC-IT/{letters}.json")
    data = read(root / f"MIMIC-IT/{letters}_instructions.json")["data"]
    for encoded in store.values():
        with PIL.Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as picture:
            assert picture.format == "JPEG" and picture.size == (SIDE, SIDE)
    named = {name for fields in data.values() for name in fields["image_ids"]}
    missing = {"TVC_IMG_000001", "TVC_IMG_lost"} if letters == "TVC" else set()
    assert named - set(store) == missing and set(store) <= named
    counts = {len(fields["image_ids"]) for fields in data.values()}
    assert counts == {images} | ({9} if letters == "VST" else {1} if letters == "TVC" else set())


def test_related_instructions_name_each_other_and_share_their_pictures(root: Path) -> None:
    data = read(root / "MIMIC-IT/CGD_instructions.json")["data"]
    related = {name: fields["rel_ins_ids"] for name, fields in data.items()}
    assert sorted(map(len, related.values())) == [0] * (RECORDS // 2) + [1] * RECORDS
    for name, others in related.items():
        for other in others:
            assert related[other] == [name]
            assert data[other]["image_ids"] == data[name]["image_ids"]


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


def own_records(root: Path, name: str) -> list[dict]:
    path = root / "own" / name
    if path.suffix == ".json":
        return read(path)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return datasets.load_from_disk(path).with_format("arrow")[:].to_pylist()


@pytest.mark.parametrize(
    ("name", "counts"),
    [("llava.json", {0, 1, 2}), ("sharegpt.jsonl", {2}), ("openai.parquet", {1}), ("saved", {2})],
)
def test_own_data(root: Path, name: str, counts: set[int]) -> None:
    records = own_records(root, name)
    made = [opened(custom(RawRecord(fields, name, (root / "own/images",)))) for fields in records]
    assert len(made) == RECORDS
    assert {len(conversation.images) for conversation in made} == counts


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
