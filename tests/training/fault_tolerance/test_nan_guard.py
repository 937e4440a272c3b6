"""Losses that are no numbers."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from training.exit_codes import MISTAKE, TrainingDivergedError
from training.fault_tolerance.nan_guard import NanGuard
from utils.data.bad_records import Origin, RecordPlace

PLACES = [RecordPlace("llava", "llava/detail_23k.json", index) for index in range(3)]
NAN, INF = float("nan"), float("inf")


def noted(guard: NanGuard, token_losses: list[float]) -> bool:
    """A batch of three conversations of two supervised tokens each; whether its loss is bad."""
    losses = torch.tensor(token_losses)
    return bool(guard.note(losses.sum(), losses, [Origin((place,), 2) for place in PLACES]))


@pytest.mark.parametrize("bad", [NAN, INF])
def test_names_the_conversation_and_stops(tmp_path, bad):
    guard = NanGuard(tmp_path, max_skipped=0)
    assert not noted(guard, [1.0] * 6)
    assert noted(guard, [1.0, 1.0, 1.0, bad, 1.0, 1.0])
    with pytest.raises(
        TrainingDivergedError, match=r"at step 7, with llava/detail_23k.json#1 \(dataset llava"
    ):
        guard.skip(7)
    [line] = guard.path.read_text().splitlines()
    [loss] = json.loads(line)["losses"]
    assert loss["samples"] == [{"dataset": "llava", "file": "llava/detail_23k.json", "index": 1}]


def test_skips_as_many_steps_as_allowed(tmp_path):
    guard = NanGuard(tmp_path, max_skipped=2)
    for step in (3, 5):
        assert noted(guard, [NAN] * 6)
        guard.skip(step)
        guard.clear()
    again = NanGuard(tmp_path, max_skipped=2)
    again.restore(4)  # a run that goes on from step 4 has skipped step 3 alone
    assert again.skipped == 1
    noted(again, [NAN] * 6)
    again.skip(5)
    with pytest.raises(TrainingDivergedError, match="after 2 that were skipped"):
        again.skip(6)
    assert [json.loads(line)["step"] for line in again.path.read_text().splitlines()] == [3, 5, 6]


@pytest.fixture(scope="module")
def grey_is_inf(trainings, tmp_path_factory) -> Path:
    """A decoder that a word throws off: whoever reads it gets no numbers."""
    folder = tmp_path_factory.mktemp("decoder") / "llama"
    shutil.copytree(trainings.world.language_model, folder)
    weights = load_file(folder / "model.safetensors")
    tokens = set(AutoTokenizer.from_pretrained(folder)("grey", add_special_tokens=False)["input_ids"])
    others = AutoTokenizer.from_pretrained(folder)("It is red. green blue", add_special_tokens=False)[
        "input_ids"
    ]
    weights["model.embed_tokens.weight"][sorted(tokens - set(others))] = INF
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_such_steps_change_no_weight(forks, trainings, grey_is_inf, tmp_path, stage):
    flags = {
        "lm_model_name_or_path": grey_is_inf,
        "zero_stage": stage,
        "dataset_names": ["llava"],
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "weight_decay": 0.1,  # moves weights whose gradients are 0 too
        "eval_strategy": "no",
        "max_steps": 3,
        "data_train_split_ratio": 1,
    }
    forked = forks.start(trainings.arguments(tmp_path / "stops", **flags))
    assert forked.wait() == [MISTAKE, MISTAKE]
    [line] = [line for line in forked.printed.splitlines() if line.startswith("error: ")]
    assert "error: the loss is nan at step" in line and "(dataset llava, rank " in line
    assert "lower --learning_rate" in line

    output = tmp_path / "goes on"
    forks.run(trainings.arguments(output, **flags, max_skipped_steps=99))
    skipped = [json.loads(line) for line in (output / "skipped_steps.jsonl").read_text().splitlines()]
    places = [place for step in skipped for loss in step["losses"] for place in loss["samples"]]
    assert places
    for place in places:
        records = json.loads((trainings.world.data / place["file"]).read_text())
        assert "grey" in records[place["index"]]["conversations"][1]["value"]
    trained = load_file(output / "final" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for name, tensor in trained.items() if "projector" in name)
    losses = trainings.losses(output)
    assert len(losses) == 3 and all(
        math.isnan(loss) == (step + 1 in {each["step"] for each in skipped})
        for step, loss in enumerate(losses)
    )
