"""Training as users run it: processes of its own, DeepSpeed, checkpoints on disk."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.checkpointing.folders import resumable_checkpoints

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


def assert_same_state(first, second):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same_state(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, two in zip(first, second, strict=True):
            assert_same_state(one, two)


def assert_same_checkpoint(first, second):
    """Trained weights, optimizer, scheduler and random states, bit for bit."""
    compared = 0
    for file in [*first.glob("global_step*/*.pt"), *first.glob("*.pth"), first / "scheduler.pt"]:
        states = [
            torch.load(folder / file.relative_to(first), weights_only=False) for folder in (first, second)
        ]
        for state in states:
            state.pop("ds_config", None)
        assert_same_state(*states)
        compared += 1
    assert compared >= 3
    assert_same_state(*(load_file(folder / "trained.safetensors") for folder in (first, second)))


def interrupted(output, copy, step):
    """A copy of a run's folder as it was after `step`."""
    shutil.copytree(output, copy)
    for folder in [*resumable_checkpoints(copy), copy / "final"]:
        if folder.name == "final" or int(folder.name.split("-")[1]) > step:
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    "kind, flags, step", [("alone", {}, 10), ("alone", {}, 20), ("together", TWO_PROCESSES, 20)]
)
def test_resume_from_the_middle_of_an_epoch_is_bitwise_equal(trainings, request, tmp_path, kind, flags, step):
    whole, output = request.getfixturevalue(kind), tmp_path / "run"
    interrupted(whole, output, step)
    command = trainings.arguments(output, **STEPS, **flags, resume_from_checkpoint=True)
    printed = trainings.run(command, processes=2 if flags else 1)
    assert f"resuming from {output / f'checkpoint-{step}'}" in printed
    assert trainings.losses(output) == trainings.losses(whole)
    assert_same_checkpoint(whole / "checkpoint-28", output / "checkpoint-28")
    assert_same_weights(whole / "final", output / "final", tolerance=0)


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


STOPS_WHILE_SAVING = """
import sys, time
import training.run, training.trainer

save = training.trainer.torch.save
def stop_at_step_10(value, path, *args, **kwargs):
    save(value, path, *args, **kwargs)
    if ".checkpoint-10.partial" in str(path):
        print("half written", flush=True)
        time.sleep(120)

training.trainer.torch.save = stop_at_step_10
sys.exit(training.run.main())
"""


def test_killed_while_saving_goes_on_from_the_checkpoint_before(trainings, alone, tmp_path):
    command = trainings.arguments(tmp_path, **STEPS)
    process = trainings.start(command, launcher=["-c", STOPS_WHILE_SAVING])
    for line in process.stdout:
        if "half written" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list((tmp_path / ".checkpoint-10.partial").rglob("*.pt"))
    assert [folder.name for folder in resumable_checkpoints(tmp_path)] == ["checkpoint-5"]
    printed = trainings.run(trainings.arguments(tmp_path, **STEPS, resume_from_checkpoint=True))
    assert "removed a half-written checkpoint-10" in printed
    assert f"resuming from {tmp_path / 'checkpoint-5'}" in printed
    assert trainings.losses(tmp_path) == trainings.losses(alone)
    assert not list(tmp_path.glob(".checkpoint*"))


@pytest.mark.parametrize("form", ["full", "trained"])
def test_checkpoints_load_by_themselves(trainings, alone, tmp_path, form):
    from utils.model.checkpoint import load_checkpoint

    folder = alone / "final" if form == "full" else alone / "checkpoint-28"
    model, processor = load_checkpoint(folder)
    assert model.config.attention == "mmca"
    assert processor.image_token_id == model.config.image_token_id


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


def test_a_loss_that_is_no_number_stops_the_run(trainings, tmp_path):
    command = trainings.arguments(
        tmp_path, learning_rate=1e30, lr_scheduler_type="constant", eval_strategy="no"
    )
    printed = trainings.run(command, expected=2)
    assert "error: the loss is nan at step" in printed and "lower --learning_rate" in printed
    assert not (tmp_path / "final").exists()


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
