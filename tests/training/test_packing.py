"""Packed training is unpacked training: the same losses, gradients and steps, with less padding."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.data import Batch, Collator, EncodedDataset, build_dataset
from utils.data.batching.packing import PackedDataset
from utils.model.building import build_visual_chat

LENGTH = 256


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path / "cache"))


def gradients(model: torch.nn.Module, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """The loss over all batches, a mean over supervised tokens, and what it teaches."""
    model.zero_grad()
    supervised = sum(int(batch.inputs["labels"].ne(-100).sum()) for batch in batches)
    losses = []
    for batch in batches:
        loss = model(**batch.inputs, num_items_in_batch=supervised).loss
        loss.backward()
        losses.append(loss.detach())
    learned = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {"loss": torch.stack(losses).sum(), **learned}


@pytest.mark.parametrize("attention", ["mmca", "causal", "cross"])
def test_losses_and_gradients_are_those_of_unpacked_batches(world, attention):
    torch.manual_seed(0)
    model, processor = build_visual_chat(
        str(world.language_model), str(world.vision_model), attention=attention, dtype=torch.float32
    )
    model.train()
    mixture = build_dataset(["llava", "llava_dial"], world.data, concatenate=2, samples=10)
    encoded = EncodedDataset(mixture, processor, LENGTH, on_bad="skip")
    packed = PackedDataset(encoded, LENGTH, max_images=8, seed=3)
    assert len(packed) < 0.7 * len(encoded)
    collator = Collator(processor.tokenizer.pad_token_id)
    batches = [
        [
            collator([rows[index] for index in range(start, min(start + 3, len(rows)))])
            for start in range(0, len(rows), 3)
        ]
        for rows in (encoded, packed)
    ]
    alone, together = (gradients(model, each) for each in batches)
    assert alone.keys() == together.keys() and len(alone) > 2
    for name, expected in alone.items():
        torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-5, msg=name)
    assert alone["loss"] > 1 and max(grad.abs().max() for grad in alone.values()) > 1e-3


PACKED = {"packing": True, "max_seq_len": LENGTH, "per_device_train_batch_size": 2, "logging_steps": 1}
STEPS = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "epoch"}


@pytest.fixture(scope="module")
def alone(trainings, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    printed = trainings.run(trainings.arguments(output, **PACKED, **STEPS))
    assert re.search(r"packed [\d,]+ conversations into [\d,]+ rows", printed)
    return output


@pytest.mark.slow
def test_zero_3_on_two_processes_learns_the_same(trainings, alone, tmp_path):
    flags = {**PACKED, "per_device_train_batch_size": 1, "zero_stage": 3}
    trainings.run(trainings.arguments(tmp_path, **flags, **STEPS), processes=2)
    np.testing.assert_allclose(trainings.losses(alone), trainings.losses(tmp_path), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_evaluation_is_that_of_unpacked_rows(trainings, alone, tmp_path):
    trainings.run(trainings.arguments(tmp_path, max_steps=1, save_strategy="steps", save_steps=1))
    first = [
        next(line["eval_loss"] for line in trainings.history(output) if "eval_loss" in line)
        for output in (alone, tmp_path)
    ]
    assert first[0] == pytest.approx(first[1], abs=1e-5)


@pytest.mark.slow
def test_resume_in_the_middle_of_an_epoch_is_bitwise_equal(trainings, alone, tmp_path):
    state = json.loads((alone / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["epoch"] % 1  # in the middle
    command = trainings.arguments(tmp_path, **PACKED, **STEPS, resume_from_checkpoint=alone / "checkpoint-3")
    trainings.run(command)
    assert trainings.losses(tmp_path) == trainings.losses(alone)
