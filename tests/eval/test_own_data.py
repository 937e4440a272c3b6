"""Own data are evaluated in the shapes and files in which they are trained; answers are the references."""

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval import batch_generation
from eval.dialogues import EvalDialogue, EvalTurn, load_dialogues, read_set
from eval.report import main as report
from utils.conversation import Image

FIRST, SECOND = "picture 0.png", "picture 1.png"


def llava(folder: Path) -> dict:
    said = ["<image>\n<image>\nWhich is red?", "The first.", "Sure?", "Yes."]
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(said)]
    return {"id": "one", "image": [FIRST, SECOND], "conversations": turns}


def sharegpt(folder: Path) -> dict:
    said = ["<image><image>Which is red?", "The first.", "Sure?", "Yes."]
    turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]
    return {"id": "one", "images": [FIRST, SECOND], "messages": turns}


def openai(folder: Path) -> dict:
    shown = [{"type": "image_url", "image_url": {"url": name}} for name in (FIRST, SECOND)]
    asked = [*shown, {"type": "text", "text": "Which is red?"}]
    said = [asked, "The first.", "Sure?", "Yes."]
    turns = [{"role": ("user", "assistant")[number % 2], "content": part} for number, part in enumerate(said)]
    return {"id": "one", "messages": turns}


def write_json(file: Path, records: list[dict]) -> Path:
    file.with_suffix(".json").write_bytes(b"\xef\xbb\xbf" + json.dumps(records).encode())
    return file.with_suffix(".json")


def write_lines(file: Path, records: list[dict]) -> Path:
    file.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, records)))
    return file.with_suffix(".jsonl")


def write_parquet(file: Path, records: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(records), file.with_suffix(".parquet"))
    return file.with_suffix(".parquet")


def write_saved(file: Path, records: list[dict]) -> Path:
    datasets.Dataset.from_list(records).save_to_disk(str(file))
    return file


TABLES = (write_parquet, write_saved)  # a column has one type: contents that are texts and lists do not fit


@pytest.mark.parametrize(
    ("shape", "write"),
    [(shape, write) for shape in (llava, sharegpt, openai) for write in (write_json, write_lines)]
    + [(shape, write) for shape in (llava, sharegpt) for write in TABLES],
)
def test_every_shape_in_every_kind_of_file(
    pictures: list[Path], shape: Callable[[Path], dict], write: Callable[[Path, list[dict]], Path]
) -> None:
    folder = pictures[0].parent
    (dialogue,) = load_dialogues(write(folder / "own", [shape(folder)]), image_folder=folder)
    assert dialogue == EvalDialogue(
        "one",
        (
            EvalTurn(
                "Which is red?",
                "'picture 0.png' 'picture 1.png'",
                (Image(pictures[0]), Image(pictures[1])),
                ("The first.",),
            ),
            EvalTurn("Sure?", "", (), ("Yes.",)),
        ),
    )


def test_system_texts_questions_without_answers_and_bad_records(pictures: list[Path], tmp_path: Path) -> None:
    ask, told = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    records = [
        {"system": "Be brief.", "messages": [ask, told, ask]},
        {"id": 7, "messages": [ask]},
        {"messages": [told]},
        {"id": 7, "image": "nowhere.png", "conversations": [{"from": "human", "value": "<image>?"}]},
        {"id": "many", "images": [FIRST] * 3, "messages": [{"role": "user", "content": "<image>" * 3 + "?"}]},
    ]
    found = read_set(write_json(pictures[0].parent / "own", records), max_images=2)
    assert found.dialogues == (
        EvalDialogue("own.json#0", (EvalTurn("Why?", references=("So.",)), EvalTurn("Why?")), "Be brief."),
        EvalDialogue("7", (EvalTurn("Why?"),)),
        EvalDialogue("7 (2)", found.dialogues[2].turns),
    )
    assert [each.dialogue for each in found.bad] == ["own.json#2", "many"]
    assert "found assistant" in found.bad[0].reason and "3 images, of 2 allowed" in found.bad[1].reason


def test_the_command_scores_own_data_and_shows_images_that_they_hold(
    checkpoint: Path, pictures: list[Path], tmp_path: Path
) -> None:
    record = openai(tmp_path)
    url = "data:image/png;base64," + base64.b64encode(pictures[2].read_bytes()).decode()
    record["messages"][0]["content"][1]["image_url"]["url"] = url
    file, output = write_lines(pictures[0].parent / "own", [record]), tmp_path / "results" / "own"
    flags = ["--checkpoint_path", str(checkpoint), "--eval_data", str(file), "--output_filename", str(output)]
    assert batch_generation.main([*flags, "--device_map", "cpu", "--max_new_tokens", "4"]) == 0
    with output.with_suffix(".csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["reference"] for row in rows] == ["The first.", "Yes."]
    assert [row["test_name"] for row in rows] == ["one", "one"]
    assert rows[0]["image_path"].startswith("'picture 0.png' ") and "base64" not in rows[0]["image_path"]
    content = json.loads(output.with_suffix(".json").read_text())
    assert content["overall"]["count"] == 2
    file_of, data_url = content["answers"][0]["images"]
    assert file_of == str(pictures[0]) and data_url.startswith("data:image/png;base64,")
    assert report([str(output.with_suffix(".json")), "--output", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 2
