"""Training over damaged data: what is left out is listed, the same for every run of the same job."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
WORKERS = {"dataloader_num_workers": 1, "save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps"}
FLAGS = {"max_bad_fraction": 0.2, "eval_steps": 7, **WORKERS}


@pytest.fixture(scope="module")
def damaged(trainings, tmp_path_factory) -> Path:
    """A missing picture (in two records), a truncated one (in two), a record without an answer, one that names
    a reserved token, and one in another format: 60 records, 7 of them bad."""
    data = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(trainings.world.data, data)
    images = data / "coco" / "train2017"
    (images / "000000000003.jpg").unlink()
    whole = images / "000000000020.jpg"
    whole.write_bytes(whole.read_bytes()[:-150])
    dialogues = data / "llava" / "conversation_58k.json"
    records = json.loads(dialogues.read_text())
    records[5]["conversations"][1]["value"] = " "
    records[7]["conversations"][2]["value"] = "What does </s> mean?"
    records[9] = {"caption": "a dog"}
    dialogues.write_text(json.dumps(records))
    return data


EXPECTED = [
    ("llava", "llava/complex_reasoning_77k.json", 4, "000000000020.jpg: the image is damaged"),
    ("llava", "llava/detail_23k.json", 3, "000000000003.jpg: there is no such image file"),
    ("llava_dial", "llava/conversation_58k.json", 3, "000000000003.jpg: there is no such image file"),
    ("llava_dial", "llava/conversation_58k.json", 5, "the answer of turn 1 is empty"),
    ("llava_dial", "llava/conversation_58k.json", 7, "the text of a user contains '</s>'"),
    ("llava_dial", "llava/conversation_58k.json", 9, "not in the format of llava_dial"),
    ("llava_dial", "llava/conversation_58k.json", 20, "000000000020.jpg: the image is damaged"),
]


def assert_lists_all(output: Path) -> None:
    rows = [json.loads(line) for line in (output / "bad_samples.jsonl").read_text().splitlines()]
    assert len(rows) == len(EXPECTED)
    for row, (dataset, file, index, reason) in zip(rows, EXPECTED, strict=True):
        assert (row["dataset"], row["file"], row["index"]) == (dataset, file, index)
        assert reason in row["reason"] and not row["reason"].startswith(file)


@pytest.fixture(scope="module")
def alone(trainings, damaged, tmp_path_factory) -> Path:
    """One process with a loader worker; groups of up to 2 records."""
    output = tmp_path_factory.mktemp("alone")
    command = trainings.arguments(output, data_path=damaged, dataset_concatenate_samples=2, **FLAGS)
    printed = trainings.run(command)
    assert "7 bad of 60 records (11.67%)" in printed and "bad_samples.jsonl" in printed
    assert_lists_all(output)
    return output


def test_two_processes_under_zero_3_list_and_learn_the_same(trainings, damaged, alone, tmp_path):
    flags = FLAGS | {"dataloader_num_workers": 0, "zero_stage": 3, "per_device_train_batch_size": 2}
    command = trainings.arguments(tmp_path, data_path=damaged, dataset_concatenate_samples=2, **flags)
    trainings.run(command, processes=2)
    listed = [output / "bad_samples.jsonl" for output in (alone, tmp_path)]
    assert listed[0].read_bytes() == listed[1].read_bytes()
    np.testing.assert_allclose(trainings.losses(alone), trainings.losses(tmp_path), atol=1e-4, rtol=0)


def test_a_resumed_run_lists_what_was_found_before_it_was_interrupted(trainings, damaged, alone, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(alone, output)
    for folder in output.glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > 20:  # in the second epoch, when everything has been met once
            shutil.rmtree(folder)
    command = trainings.arguments(
        output, data_path=damaged, dataset_concatenate_samples=2, resume_from_checkpoint=True, **FLAGS
    )
    trainings.run(command)
    assert (output / "bad_samples.jsonl").read_bytes() == (alone / "bad_samples.jsonl").read_bytes()
    assert trainings.losses(output) == trainings.losses(alone)


def test_too_many_bad_records_stop_the_run(trainings, damaged, tmp_path):
    """2 that the annotations show are let pass; the pictures that follow are too many."""
    command = trainings.arguments(tmp_path, data_path=damaged, max_bad_fraction=0.04)
    printed = trainings.run(command, expected=2)
    [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "of 60 records are bad" in line and "--max_bad_fraction 0.04" in line
    assert str(tmp_path / "bad_samples.jsonl") in line and "Traceback" not in printed
    assert 3 <= len((tmp_path / "bad_samples.jsonl").read_text().splitlines()) <= len(EXPECTED)
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_strict_stops_at_the_first(trainings, damaged, tmp_path, processes):
    """First the annotations; then, where those are sound, the first broken picture of the order of training."""
    command = trainings.arguments(tmp_path, data_path=damaged, strict=True)
    printed = trainings.run(command, expected=2, processes=processes)
    [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "llava/conversation_58k.json#5: the answer of turn 1 is empty" in line
    command = trainings.arguments(
        tmp_path, data_path=damaged, dataset_names=["llava"], strict=True, eval_strategy="no", seed=3
    )
    printed = trainings.run(command, expected=2, processes=processes)
    [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
    [row] = [json.loads(row) for row in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert f"{row['file']}#{row['index']}: {row['reason']}" in line and "--strict" in line
