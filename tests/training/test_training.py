"""Training as users run it: processes of its own, DeepSpeed, checkpoints on disk."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
STEPS = {"save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 7}
TWO_PROCESSES = {"per_device_train_batch_size": 2, "zero_stage": 3}


@pytest.fixture(scope="module")
def alone(trainings, tmp_path_factory) -> Path:
    """One process, ZeRO-0, batches of 4: 2 epochs of 14 steps, a checkpoint every 5 steps."""
    output = tmp_path_factory.mktemp("alone")
    printed = trainings.run(trainings.arguments(output, **STEPS))
    assert f"final checkpoint: {output / 'final'}" in printed
    assert f"best checkpoint:  {output / 'best'}" in printed
    return output


@pytest.fixture(scope="module")
def together(trainings, tmp_path_factory) -> Path:
    """Two processes, ZeRO-3 with everything partitioned, batches of 2 each."""
    output = tmp_path_factory.mktemp("together")
    trainings.run(trainings.arguments(output, **STEPS, **TWO_PROCESSES), processes=2)
    return output


def evaluations(trainings, output):
    return [line["eval_loss"] for line in trainings.history(output) if "eval_loss" in line]


def assert_same_weights(first, second, tolerance):
    one, two = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=tolerance, msg=name)


def test_zero_3_on_two_processes_equals_one_process(trainings, alone, together):
    losses = trainings.losses(alone)
    assert len(losses) == 28 and losses[-1] < losses[0]
    np.testing.assert_allclose(losses, trainings.losses(together), atol=1e-4, rtol=0)
    np.testing.assert_allclose(
        evaluations(trainings, alone), evaluations(trainings, together), atol=1e-4, rtol=0
    )
    # Adam divides small gradients by their own size, so weights differ more than losses do.
    assert_same_weights(alone / "final", together / "final", tolerance=2e-3)


def test_accumulation_and_another_launcher_change_nothing(trainings, alone, tmp_path):
    """ZeRO-2 by torchrun, micro-batches of 1 that are accumulated: the same losses, a mean over tokens."""
    flags = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "zero_stage": 2}
    command = trainings.arguments(tmp_path, **STEPS, **flags)
    trainings.run(
        command, launcher=["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    )
    np.testing.assert_allclose(trainings.losses(alone), trainings.losses(tmp_path), atol=1e-4, rtol=0)


@pytest.mark.parametrize("folder", ["final", "checkpoint-28"])
def test_a_run_begins_with_what_another_learnt(trainings, alone, tmp_path, folder):
    """Two processes and ZeRO-3 after one process without, from the full form and from the trained one."""
    flags = {"init_from": alone / folder, "max_steps": 1, "learning_rate": 1e-9, **TWO_PROCESSES}
    printed = trainings.run(trainings.arguments(tmp_path, **flags), processes=2)
    assert f"beginning with what {alone / folder} learnt" in printed
    assert evaluations(trainings, tmp_path)[0] == pytest.approx(evaluations(trainings, alone)[-1], abs=1e-4)


def test_a_run_cannot_begin_with_another_kind(trainings, alone, tmp_path):
    command = trainings.arguments(tmp_path, init_from=alone / "final", vis_proj="perceiver")
    assert "error: --init_from" in trainings.run(command, expected=2)


def test_bad_input_gets_one_line(trainings, tmp_path):
    """A dataset that is not known, and an image that is not there, found by a loader worker."""
    command = trainings.arguments(tmp_path, dataset_names=["lava"])
    printed = trainings.run(command, expected=2)
    assert "error: unknown dataset lava; the known ones are: aokvqa, " in printed
    assert "Traceback" not in printed
    data = tmp_path / "data"
    shutil.copytree(trainings.world.data, data)
    missing = data / "coco" / "train2017" / "000000000003.jpg"
    missing.unlink()
    command = trainings.arguments(
        tmp_path / "out",
        data_path=data,
        data_train_split_ratio=1,  # the picture is among those trained on, wherever the split would put it
        dataloader_num_workers=1,
        eval_strategy="no",
        strict=True,
    )
    printed = trainings.run(command, expected=2)
    [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "000000000003.jpg" in line and "Traceback" not in printed


def test_debug_samples_and_summary(trainings, tmp_path):
    command = trainings.arguments(
        tmp_path,
        max_steps=2,
        data_debug_path=tmp_path / "debug",
        enable_tensorboard=True,
        checkpoint_form="trained",
    )
    printed = trainings.run(command)
    assert "llava_dial" in printed and "conversations" in printed and "learning: " in printed
    assert "tokens/s" in printed and "images/s" in printed
    page = (tmp_path / "debug" / "index.html").read_text()
    assert page.count("<article") == 10 and "data:image/jpeg" in page
    assert "### Question: What colour is it?" in (tmp_path / "debug" / "sample_0.txt").read_text()
    assert (tmp_path / "debug" / "sample_0_image_1.png").exists()
    assert list(tmp_path.rglob("events.out.tfevents*"))
    assert (tmp_path / "final" / "trained.safetensors").exists()
