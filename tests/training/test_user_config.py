import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from training.sharding import ZeroArguments, zero_config
from training.user_config import mismatches_named, read_user_config, unknown_keys
from utils.commands import UsageError


@pytest.mark.parametrize(
    "place, key, nearest",
    [
        ((), "gradient_cliping", "gradient_clipping"),
        ((), "a_word_of_mine", None),
        (("zero_optimization",), "reduce_bucket", "reduce_bucket_size"),
        (("zero_optimization", "offload_optimizer"), "devise", "device"),
        (("fp16",), "loss_scale_windows", "loss_scale_window"),
        (("activation_checkpointing",), "partition_activation", "partition_activations"),
        (("flops_profiler",), "profil_step", "profile_step"),
        (("optimizer",), "parms", "params"),
    ],
)
@pytest.mark.parametrize("value", [1, "auto"])
def test_a_key_that_deepspeed_would_ignore_is_named_with_the_nearest_known(place, key, nearest, value):
    config = zero_config(3)
    section = config
    for part in place:
        section = section.setdefault(part, {"type": "AdamW"} if part == "optimizer" else {})
    section[key] = value
    assert unknown_keys(config) == {".".join([*place, key]): nearest}


@pytest.mark.parametrize("stage", [0, 3])
def test_the_values_of_known_keys_may_be_auto_and_parameters_of_the_optimizer_are_its_own(stage):
    config = zero_config(stage)
    assert unknown_keys(config) == {}
    config["zero_optimization"] |= {"reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    config["optimizer"] = {"type": "AdamW", "params": {"lr": "auto", "something": 3}}
    config["scheduler"] = {"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}}
    config |= {"wall_clock_breakdown": "auto", "train_batch_size": 128}
    assert unknown_keys(config) == {}


def test_a_file_decides_the_stage(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    flags = ZeroArguments(deepspeed_config=str(path))
    assert flags.deepspeed_settings(None)["zero_optimization"] == {"stage": 2}
    assert flags.zero_stage == 2
    assert ZeroArguments().deepspeed_settings(str(path))["zero_optimization"] == {"stage": 2}
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": None}}))
    assert ZeroArguments().deepspeed_settings(str(path))["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize(
    "stage, moved, flags, says",
    [
        (3, {"offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}}, {}, "cannot be resumed"),
        (2, {}, {"zero_stage": 3}, "contradicts --deepspeed_config"),
        (2, {}, {"shard_within": "node"}, "--shard_within node needs --zero_stage 3"),
        (3, {"zero_hpz_partition_size": 2}, {"shard_within": "node"}, "give one of the two"),
        (2, {}, {"offload_param": "cpu"}, "set it in the file"),
        (None, {}, {}, "no such file"),
    ],
)
def test_flags_that_contradict_a_file_get_one_line(tmp_path, stage, moved, flags, says):
    path = tmp_path / "own.json"
    if stage is not None:
        path.write_text(json.dumps({"zero_optimization": {"stage": stage, **moved}}))
    with pytest.raises(UsageError) as error:
        ZeroArguments(deepspeed_config=str(path), **flags).deepspeed_settings(None)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "text, says",
    [
        (None, "no such file"),
        ("{", "not valid JSON"),
        ('{"bf16": {}, "bf16": {}}', "bf16 is there twice"),
        ('{"zero_optimization": {"stage": 7}}', "stage: Input should be 0, 1, 2, 3 or 3"),
        ('{"amp": {"enabled": true}}', "has been removed"),
        (
            '{"zero_optimisation": {"stage": 3}}',
            "DeepSpeed does not know zero_optimisation (did you mean zero_optimization?)",
        ),
    ],
)
def test_mistakes_in_a_file_get_one_line(tmp_path, text, says):
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_user_config(str(path))
    assert says in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


OWN = {
    "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
    },
    "steps_per_print": 1_000_000_000,
}
SCHEDULER = {
    "type": "WarmupDecayLR",
    "params": {
        "warmup_min_lr": "auto",
        "warmup_max_lr": "auto",
        "warmup_num_steps": "auto",
        "total_num_steps": "auto",
    },
}


@pytest.mark.slow
def test_with_an_optimizer_and_a_schedule_of_its_own_nothing_is_lost_either(forks, trainings, tmp_path):
    """It goes on where it was, and a loss that is no number changes no weight."""
    (tmp_path / "optimizer.json").write_text(json.dumps(OWN))
    (tmp_path / "both.json").write_text(json.dumps({**OWN, "scheduler": SCHEDULER}))
    spoilt = tmp_path / "llama"
    shutil.copytree(trainings.world.language_model, spoilt)
    weights = load_file(spoilt / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
    flags = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "no",
        "learning_rate_pretraining_components": 3e-3,
        "checkpoint_form": "trained",
    }
    for name in ("optimizer", "both"):
        mine = {**flags, "deepspeed_config": tmp_path / f"{name}.json"}
        whole = tmp_path / f"{name}-whole"
        forks.run(trainings.arguments(whole, **mine), 1)
        part = trainings.copy(whole, tmp_path / f"{name}-part", 2)
        forks.run(trainings.arguments(part, **mine, resume_from_checkpoint=True), 1)
    mine |= {"lm_model_name_or_path": spoilt, "max_skipped_steps": 4}
    forks.run(trainings.arguments(tmp_path / "spoilt", **mine), 1)

    for name in ("optimizer", "both"):
        folders = [tmp_path / f"{name}-{kind}" for kind in ("whole", "part")]
        one, two = (
            [(line["loss"], line["learning_rate"]) for line in lines(trainings, each)] for each in folders
        )
        assert len(one) == 4 and one == two
        one, two = (load_file(each / "final" / "trained.safetensors") for each in folders)
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    assert all(math.isnan(line["loss"]) for line in lines(trainings, tmp_path / "spoilt"))
    kept = load_file(tmp_path / "spoilt" / "final" / "trained.safetensors")
    assert all(torch.isfinite(tensor).all() for key, tensor in kept.items() if "projector" in key)


def lines(trainings, output):
    return [line for line in trainings.history(output) if "loss" in line]


def test_a_deepspeed_file_against_the_flags_is_one_line():
    own = HfTrainerDeepSpeedConfig({"optimizer": {"type": "AdamW", "params": {"lr": 1.0}}})
    with pytest.raises(UsageError, match=r'lr=1.0 vs hf learning_rate=0.5: write "auto"'), mismatches_named():
        own.trainer_config_process(TrainingArguments(use_cpu=True, learning_rate=0.5))
        own.trainer_config_finalize(TrainingArguments(use_cpu=True), None, 10)
