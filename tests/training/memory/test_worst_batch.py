"""The rehearsal of the largest batch: it tells its memory, and leaves no trace in the training that follows."""

import hashlib
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LINE = re.compile(
    r"largest batch \((\d+) x (\d+) tokens, (\d+) images a row\): predicted ([\d.]+) GiB, measured ([\d.]+) GiB"
)


def run(trainings, output: Path, processes: int, **flags):
    """Losses, the digest of the final weights, and what was printed."""
    command = trainings.arguments(output, num_train_epochs=1, eval_strategy="no", **flags)
    printed = trainings.run(command, processes=processes)
    weights = sorted((output / "final").glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    return trainings.losses(output), digest, printed


@pytest.mark.parametrize(
    "processes, flags",
    [
        (2, {"zero_stage": 3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
        pytest.param(1, {"zero_stage": 2, "gradient_checkpointing": True}, marks=pytest.mark.long),
        pytest.param(1, {"zero_stage": 0, "lang_lora_dim": 4, "packing": True}, marks=pytest.mark.long),
        pytest.param(2, {"zero_stage": 1, "precision": "bf16"}, marks=pytest.mark.long),
    ],
    ids=["zero 3, two processes", "zero 2", "zero 0, LoRA, packed", "zero 1, bf16, two processes"],
)
def test_training_goes_on_bit_by_bit_as_without_it(trainings, tmp_path, processes, flags):
    losses, weights, _ = run(trainings, tmp_path / "plain", processes, **flags)
    flags["dry_run_worst_batch"] = True
    rehearsed, same_weights, printed = run(trainings, tmp_path / "rehearsed", processes, **flags)
    assert rehearsed == losses and same_weights == weights
    rows, length, _, predicted, measured = map(float, LINE.search(printed).groups())
    assert rows == flags.get("per_device_train_batch_size", 4) and length == 256
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.long
def test_a_resumed_training_too(trainings, tmp_path):
    flags = {"zero_stage": 2, "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    expected, weights, _ = run(trainings, tmp_path / "whole", 1, **flags)
    flags |= {"resume_from_checkpoint": tmp_path / "whole" / "checkpoint-3", "dry_run_worst_batch": True}
    losses, same_weights, printed = run(trainings, tmp_path / "part", 1, **flags)
    assert losses == expected and same_weights == weights and LINE.search(printed)


@pytest.mark.long
def test_an_optimizer_that_cannot_be_put_back_is_refused(trainings, tmp_path):
    command = trainings.arguments(tmp_path, dry_run_worst_batch=True, optim="adafactor")
    assert "knows how to put Adam back" in trainings.run(command, expected=2)
