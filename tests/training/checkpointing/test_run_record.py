"""What a run depends on: what may change when it goes on takes effect, what may not is refused by name."""

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import utils.distributed
from training.arguments import DataArguments, ModelArguments
from training.arguments.command_line import parse_flags, training_arguments
from training.arguments.parser import VisualChatTrainingArguments
from training.checkpointing.folders import ResumeError, resumable_checkpoints
from training.checkpointing.run_record import FIXED, UNRECORDED, Run
from training.exit_codes import MISTAKE
from utils.data import build_dataset


@pytest.fixture
def run_of(trainings, tmp_path, monkeypatch):
    """The run that a command line asks for."""
    monkeypatch.setattr(utils.distributed, "initialise", lambda use_cpu: None)

    def read(*words, **flags):
        return Run.of(
            *training_arguments(*parse_flags([*trainings.arguments(tmp_path, **flags), "--use_cpu", *words]))
        )

    yield read
    unset_hf_deepspeed_config()


def test_each_flag_may_change_and_is_said_or_may_not(run_of, tmp_path, caplog):
    run = run_of(lang_lora_dim=2, vis_lora_dim=2, lora_learning_rate=1e-3)
    run.save(tmp_path)
    known = {
        each.name
        for kind in (ModelArguments, DataArguments, VisualChatTrainingArguments)
        for each in fields(kind)
    }
    assert known == run.flags.keys() | UNRECORDED and not run.flags.keys() & UNRECORDED
    assert run.flags.keys() > FIXED
    caplog.set_level("INFO", "training.checkpointing.run_record")
    run.check(tmp_path)
    assert not caplog.messages
    for name, value in run.flags.items():
        other = replace(run, flags={**run.flags, name: "another"})
        caplog.clear()
        if name in FIXED:
            with pytest.raises(
                ResumeError, match=rf"--{name} .* \(now another\), which cannot change"
            ) as refused:
                other.check(tmp_path)
            assert str(refused.value).count("--") == 3 and not caplog.messages  # the flag and two ways on
        else:
            other.check(tmp_path)
            [line] = caplog.messages
            assert f"changed since {tmp_path.name}: --{name} " in line and "(now another)" in line, value


SAME = {
    "attention": (
        {"attention": None, "enable_mmca_attention": True},
        {"attention": "mmca", "image_layers": "full", "image_gate": "none", "image_summary": "none"},
    ),
    "image layers": ({"image_layers": "none"}, {}),
    "what learns": ({"train": ["gate", "projector", "embedding"]}, {}),
    "projector": ({"vis_proj": "baseline"}, {"vis_proj": "linear"}),
    "one value or one for each": ({"dataset_samples": 5}, {"dataset_samples": [5, 5]}),
    "order": ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
    "precision": ({"precision": "bf16"}, {"precision": "auto", "bf16": True}),
    "LoRA that is off": ({}, {"lang_lora_module_name": "q_proj"}),
    "bits": ({"frozen_bits": 4}, {"frozen_bits": [4, 0]}),
    "micro-batches": (
        {},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ),
}


@pytest.mark.parametrize("one, other", SAME.values(), ids=SAME.keys())
def test_another_way_to_say_the_same_is_the_same(run_of, tmp_path, one, other):
    run_of(**one).save(tmp_path)
    run_of(**other).check(tmp_path)


DIFFERENT = {
    "attention": {"attention": "causal"},
    "train": {"train": ["projector", "gate", "decoder:top-1"]},
    "image_gate": {"image_gate": "none"},
    "dataset_samples": {"dataset_samples": [5, "all"]},
    "frozen_bits": {"frozen_bits": [0, 8]},
}


@pytest.mark.parametrize("flag", DIFFERENT)
def test_what_is_meant_differently_is_refused(run_of, tmp_path, flag):
    run_of().save(tmp_path)
    with pytest.raises(ResumeError, match=f"--{flag} "):
        run_of(**DIFFERENT[flag]).check(tmp_path)


PUBLISHED = {"image_layers": "full", "image_gate": "none", "image_summary": "none"}
LORA = {**PUBLISHED, "lang_lora_dim": 2}
BEFORE = {  # what a record lacked or had, the same run, another, and what is said of that
    "published MMCA": (
        dict.fromkeys(PUBLISHED),
        PUBLISHED,
        {},
        "--image_gate none (now head), --image_layers full (now none), --image_summary none (now mean)",
    ),
    "bits of the decoder alone": (
        {"frozen_bits": 4},
        {"frozen_bits": 4},
        {"frozen_bits": [4, 8]},
        "--frozen_bits 4 0 (now 4 8)",
    ),
    "the published parts": (
        {"train": None},
        LORA,
        {**LORA, "train": ["projector", "lora"]},
        "--train embedding projector lora (now projector lora)",
    ),
    "one rate": (
        {"lora_learning_rate": None},
        LORA,
        {**LORA, "lora_learning_rate": 1e-3},
        "--lora_learning_rate 0.0 (now 0.001)",
    ),
}


@pytest.mark.parametrize("recorded, same, other, says", BEFORE.values(), ids=BEFORE.keys())
def test_records_of_before_are_understood(run_of, tmp_path, recorded, same, other, says):
    run_of(**same).save(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    flags = {**record["flags"], **recorded}
    record["flags"] = {
        name: value for name, value in flags.items() if name not in recorded or value is not None
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    run_of(**same).check(tmp_path)
    with pytest.raises(ResumeError, match=re.escape(says)):
        run_of(**other).check(tmp_path)


def test_a_model_may_move_but_not_change(run_of, trainings, tmp_path, caplog):
    moved, other = tmp_path / "moved", tmp_path / "other"
    for folder in (moved, other):
        folder.mkdir()
        for path in trainings.world.language_model.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    run_of().save(tmp_path)
    caplog.set_level("INFO", "training.checkpointing.run_record")
    run_of(lm_model_name_or_path=moved).check(tmp_path)
    assert f"--lm_model_name_or_path {trainings.world.language_model} (now {moved})" in caplog.text
    with pytest.raises(ResumeError, match="--lm_model_name_or_path"):
        run_of(lm_model_name_or_path=other).check(tmp_path)
    run_of(lm_model_name_or_path=other).save(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ResumeError, match=r"--lm_model_name_or_path .*other with different weights"):
        run_of(lm_model_name_or_path=other).check(tmp_path)


def test_data_may_move_but_not_change(run_of, tmp_path, monkeypatch):
    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path / "cache"))
    run_of().with_data(own_data(tmp_path / "here")).save(tmp_path)
    run_of().with_data(own_data(tmp_path / "there")).check_data(tmp_path)
    changed = own_data(tmp_path / "there", answers=["Yes.", "No!"])
    with pytest.raises(ResumeError, match=r"the annotation files of my.json are not those of the run"):
        run_of().with_data(changed).check_data(tmp_path)
    run_of().save(tmp_path)  # as an earlier version
    run_of().with_data(changed).check_data(tmp_path)


def own_data(folder: Path, answers=("Yes.", "No.")):
    folder.mkdir(exist_ok=True)
    records = [
        {
            "id": str(number),
            "conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": answer}],
        }
        for number, answer in enumerate(answers)
    ]
    (folder / "my.json").write_text(json.dumps(records))
    return build_dataset(["my.json"], folder)


STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
CHANGES = {
    "nothing": {},
    "learning_rate": {"learning_rate": 1e-3},
    "embedding": {"learning_rate_pretraining_components": 1e-4},
    "longer": {"max_steps": 8},
    "schedule": {"lr_scheduler_type": "linear"},
    "optimizer": {"weight_decay": 0.5, "adam_beta1": 0.5},
    "saving": {"save_steps": 1},
}


def cosine(step: int, steps: int) -> float:
    return 1e-2 * (1 + math.cos(math.pi * (step - 1) / steps)) / 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_what_may_change_takes_effect(forks, trainings, tmp_path, stage):
    flags = {**STEPS, "zero_stage": stage}
    whole = tmp_path / "whole"
    forks.run(trainings.arguments(whole, **flags), 1)

    def resumed(name: str, **change: object) -> list[str]:
        output = trainings.copy(whole, tmp_path / name, 2)
        return trainings.arguments(output, **{**flags, **change}, resume_from_checkpoint=True)

    printed = {name: forks.run(resumed(name, **change), 1) for name, change in CHANGES.items()}
    assert "changed since checkpoint-2: --learning_rate 0.01 (now 0.001)" in printed["learning_rate"]
    refused = forks.start(resumed("old", lang_lora_dim=4), 1)
    assert refused.wait() == [MISTAKE]
    assert "written with --lang_lora_dim 0 (now 4), which cannot change within a run" in refused.printed

    def rates(name: str) -> list[float]:
        return [line["learning_rate"] for line in trainings.history(tmp_path / name) if "loss" in line]

    assert rates("whole") == pytest.approx([cosine(step, 4) for step in (1, 2, 3, 4)])
    assert rates("nothing") == rates("whole")
    assert trainings.losses(tmp_path / "nothing") == trainings.losses(whole)
    assert rates("learning_rate") == pytest.approx(
        [*rates("whole")[:2], cosine(3, 4) / 10, cosine(4, 4) / 10]
    )
    assert rates("longer") == pytest.approx([*rates("whole")[:2], *(cosine(step, 8) for step in range(3, 9))])
    assert rates("schedule") == pytest.approx([*rates("whole")[:2], 1e-2 / 2, 1e-2 / 4])
    first = trainings.losses(tmp_path / "learning_rate")
    assert first[:3] == trainings.losses(whole)[:3] and first[3] != trainings.losses(whole)[3]
    assert trainings.losses(tmp_path / "embedding")[3] != trainings.losses(whole)[3]
    assert [each.name for each in resumable_checkpoints(tmp_path / "saving")] == [
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-4",
    ]
    groups = optimizer_groups(resumable_checkpoints(tmp_path / "optimizer")[-1])
    assert {group["betas"][0] for group in groups} == {0.5}
    assert 0.5 in {group["weight_decay"] for group in groups}


def optimizer_groups(checkpoint: Path) -> list[dict]:
    """The optimizer's groups in DeepSpeed's files, whatever the stage."""
    for path in checkpoint.glob("global_step*/*.pt"):
        state = torch.load(path, weights_only=False)
        found = state.get("optimizer") or state.get("optimizer_state_dict")
        while found and "param_groups" not in found:
            found = found.get("optimizer_state_dict") or found.get("base_optimizer_state")
        if found:
            return found["param_groups"]
    raise AssertionError(f"no optimizer in {checkpoint}")
