"""Going on from a checkpoint: bit for bit on as many processes, within rounding on another number of them."""

import json
import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.checkpointing.folders import resumable_checkpoints
from training.sharding import has_async_io

STEPS_AN_EPOCH = 6  # 26 conversations, 23 to train on, 4 a step
BASE = {
    "dataset_samples": 13,
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "eval_strategy": "no",
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.01,
    "learning_rate_pretraining_components": 3e-3,
    "epoch_checkpoint_form": "trained",
    "checkpoint_form": "trained",
}
MIDDLE, END = 3, STEPS_AN_EPOCH


@dataclass(frozen=True)
class Case:
    """A run that is interrupted after `step`."""

    stage: int
    ranks: int
    lora: bool  # with MMCA as it is by default; otherwise as published
    workers: int
    step: int
    train: tuple[str, ...] = ()  # the published recipe
    more: tuple[tuple[str, object], ...] = ()  # other flags

    @property
    def whole(self) -> str:
        """The uninterrupted run that it is compared with."""
        words = [*self.train, *(Path(str(value)).name for _, value in self.more)]
        more = re.sub(r"\W+", "-", "-".join(["", *words]))
        return f"zero{self.stage}-ranks{self.ranks}-lora{int(self.lora)}-workers{self.workers}{more}"

    @property
    def name(self) -> str:
        return f"{self.whole}-after{self.step}"

    @property
    def flags(self) -> dict[str, object]:
        lora = {"lang_lora_dim": 2, "vis_lora_dim": 2} if self.lora else {"enable_mmca_attention": True}
        train = {"train": [*self.train, *("gate", "lora") * self.lora]}
        return {
            **BASE,
            **lora,
            **(train if self.train else {}),
            **dict(self.more),
            "zero_stage": self.stage,
            "dataloader_num_workers": self.workers,
            "per_device_train_batch_size": 4 // self.ranks,
        }


ALL = [Case(*values) for values in product((0, 2, 3), (1, 2), (False, True), (0, 2), (MIDDLE, END))]
# Of each stage and number of ranks two, so that everything that matters is met by some.
FEW = [
    case
    for case in ALL
    if case.workers == 2 * case.lora and case.lora == ((case.stage == 2) ^ (case.ranks == 2))
]


def run_cases(forks, trainings, folder: Path, cases: list[Case]) -> None:
    """Each case's whole run, and what goes on from where it is interrupted."""
    for case in cases:
        if not (folder / case.whole).exists():
            forks.run(trainings.arguments(folder / case.whole, **case.flags), case.ranks)
        output = trainings.copy(folder / case.whole, folder / case.name, case.step)
        forks.run(trainings.arguments(output, **case.flags, resume_from_checkpoint=True), case.ranks)


def equal(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if hasattr(first, "__dict__"):
        return type(first) is type(second) and equal(vars(first), vars(second))
    return first == second


def differences(first: Path, second: Path) -> list[str]:
    """Files of two checkpoints that are not equal: weights, optimizer, scheduler, random states, losses."""
    found = []
    names = [*first.glob("global_step*/*.pt"), *first.glob("*.pth"), first / "scheduler.pt"]
    assert len(names) >= 3
    for name in (path.relative_to(first) for path in names):
        states = [torch.load(folder / name, weights_only=False) for folder in (first, second)]
        for state in states:
            state.pop("ds_config", None)
        if not equal(*states):
            found.append(str(name))
    if not equal(*(load_file(folder / "trained.safetensors") for folder in (first, second))):
        found.append("trained.safetensors")
    histories = [losses(folder) for folder in (first, second)]
    if histories[0] != histories[1] or len(histories[0]) != int(first.name.split("-")[1]):
        found.append("losses")
    return found


def losses(checkpoint: Path) -> list[tuple[float, float]]:
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [(line["loss"], line["learning_rate"]) for line in history if "loss" in line]


LAST = f"checkpoint-{2 * STEPS_AN_EPOCH}"


def check_bitwise(folder: Path, cases: list[Case]) -> None:
    lost = {case.name: differences(folder / case.whole / LAST, folder / case.name / LAST) for case in cases}
    lost = {name: found for name, found in lost.items() if found}
    print(f"bitwise resume: tried={len(cases)} lost={len(lost)}")
    assert not lost


def check_moved(forks, trainings, folder: Path, cases: list[Case]) -> None:
    """The whole runs go on from their middle on the other number of processes."""
    lost = []
    for case in (each for each in cases if each.step == MIDDLE):
        output = folder / f"{case.name}-moved"
        trainings.copy(folder / case.whole, output, MIDDLE)
        ranks = 3 - case.ranks
        other = replace(case, ranks=ranks)
        forks.run(trainings.arguments(output, **other.flags, resume_from_checkpoint=True), ranks)
        whole, moved = (np.array(losses(each / LAST)) for each in (folder / case.whole, output))
        print(f"{case.name} on {ranks}: losses differ by {np.abs(whole - moved)[:, 0].max():.1e} at most")
        if len(moved) != 2 * STEPS_AN_EPOCH or not np.allclose(whole, moved, rtol=0, atol=1e-4):
            lost.append(case.name)
    tried = sum(case.step == MIDDLE for case in cases)
    print(f"resume on another number of processes: tried={tried} lost={len(lost)}")
    assert not lost


@pytest.fixture(scope="module")
def few(forks, trainings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    run_cases(forks, trainings, folder, FEW)
    return folder


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(forks, trainings, few, tmp_path):
    case = Case(stage=2, ranks=1, lora=True, workers=2, step=END)
    output = trainings.copy(few / case.whole, tmp_path / "run", END)
    damaged = output / f"checkpoint-{END}" / "trained.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:999] + bytes([content[999] ^ 1]) + content[1000:])
    printed = forks.run(trainings.arguments(output, **case.flags, resume_from_checkpoint=True), 1)
    assert f"checkpoint-{END} is not used: trained.safetensors is damaged: its content has changed" in printed
    assert f"resuming from {output / f'checkpoint-{MIDDLE}'}" in printed
    assert differences(few / case.whole / LAST, output / LAST) == []


@pytest.mark.slow
def test_a_process_that_cannot_write_stops_no_other(forks, trainings, few, tmp_path):
    """The second process's disk is full at the first save: no checkpoint, no hang, and the same training."""
    case = next(each for each in FEW if (each.stage, each.ranks) == (3, 2))
    disk = {"kind": "narrow", "ranks": [1]}
    printed = forks.run(trainings.arguments(tmp_path, **case.flags), 2, disk=disk)
    kept = [folder.name for folder in resumable_checkpoints(tmp_path)]
    assert kept == ["checkpoint-6", "checkpoint-9", "checkpoint-12"]
    assert differences(few / case.whole / LAST, tmp_path / LAST) == []
    assert "could not be written (File too large; " in printed


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_frozen_weights_are_not_written(few, stage):
    case = next(case for case in FEW if case.stage == stage and case.lora)
    trained = load_file(few / case.whole / LAST / "trained.safetensors").keys()
    for path in (few / case.whole / LAST).glob("global_step*/*model_states.pt"):
        state = torch.load(path, weights_only=False)
        shapes = state["param_shapes"] or [{}]
        names = {*state["module"], *(name for group in shapes for name in group)}
        assert "lora_A" in str(names) and names <= trained | {"model.vision_tower.embeddings.position_ids"}


@pytest.mark.slow
def test_resume_is_bitwise_equal(few):
    assert len(FEW) == 12
    check_bitwise(few, FEW)


OFFLOADED = (("offload_optimizer", "cpu"), ("offload_param", "cpu"))


@pytest.mark.slow
def test_resume_is_bitwise_equal_where_all_is_offloaded(forks, trainings, tmp_path):
    case = Case(stage=3, ranks=2, lora=True, workers=0, step=MIDDLE, more=OFFLOADED)
    run_cases(forks, trainings, tmp_path, [case])
    check_bitwise(tmp_path, [case])


@pytest.mark.long
@pytest.mark.skipif(not has_async_io(), reason="needs libaio and a compiler: apt install libaio-dev")
def test_resume_is_bitwise_equal_where_weights_are_on_nvme(forks, trainings, tmp_path):
    """And losses are those of the same run without offloading."""
    disk = tmp_path / "disk"
    disk.mkdir()
    on_disk = (OFFLOADED[0], ("offload_param", "nvme"), ("nvme_path", disk))
    case, inside = (Case(3, 2, True, 0, MIDDLE, more=more) for more in (on_disk, OFFLOADED))
    run_cases(forks, trainings, tmp_path, [case, inside])
    check_bitwise(tmp_path, [case])
    assert losses(tmp_path / case.whole / LAST) == losses(tmp_path / inside.whole / LAST)


TRAINED = {
    ("projector",): None,
    ("embedding", "projector", "encoder"): ["encoder"],
    ("projector", "decoder:top-1"): ["decoder:top-1"],
    ("embedding", "projector", "decoder", "encoder"): ["decoder", "encoder"],
}
"""Sets of parts, and what of them is the base models'."""
TRAIN_SETS = [
    Case(stage, ranks=1 + (stage > 0), lora=lora, workers=0, step=MIDDLE, train=train)
    for stage, lora, train in product((0, 2, 3), (False, True), TRAINED)
]


def run_train_sets(forks, trainings, folder: Path, cases: list[Case]) -> None:
    run_cases(forks, trainings, folder, cases)
    check_bitwise(folder, cases)
    for case in cases:
        final = folder / case.name / "final"
        assert json.loads((final / "config.json").read_text()).get("trained_parts") == TRAINED[case.train]
        begun, ended = (
            load_file(folder / case.whole / name / "trained.safetensors") for name in ("checkpoint-3", LAST)
        )
        frozen = {name for name in begun if torch.equal(begun[name], ended[name])}
        assert frozen == expected_frozen(case, set(begun)), case


def expected_frozen(case: Case, names: set[str]) -> set[str]:
    """Of a checkpoint's weights, those that do not learn in this case, or that nothing reaches: CLIP's last norm."""
    unread = {name for name in names if ".post_layernorm." in name}
    if "embedding" in case.train:
        return unread | {name for name in names if name == "lm_head.new_rows"}
    return unread | {name for name in names if name == "lm_head.new_rows" or ".embed_tokens." in name}


@pytest.mark.long
def test_resume_is_bitwise_equal_whatever_learns(forks, trainings, tmp_path):
    assert len(TRAIN_SETS) == 24
    run_train_sets(forks, trainings, tmp_path, TRAIN_SETS)


@pytest.mark.slow
def test_resume_is_bitwise_equal_where_other_parts_learn(forks, trainings, tmp_path):
    """Three of the 24, one of each stage; and weights that an earlier run has trained and this one leaves frozen, on a
    resume that does not say where they came from."""
    few = [TRAIN_SETS[6], TRAIN_SETS[11], TRAIN_SETS[22]]
    assert {case.stage for case in few} == {0, 2, 3}
    run_train_sets(forks, trainings, tmp_path, few)
    earlier = tmp_path / few[0].whole / "final"
    case = Case(0, 1, True, 0, MIDDLE, train=("projector",), more=(("init_from", earlier),))
    forks.run(trainings.arguments(tmp_path / case.whole, **case.flags), 1)
    output = trainings.copy(tmp_path / case.whole, tmp_path / case.name, MIDDLE)
    resumed = {**case.flags, "init_from": None, "resume_from_checkpoint": True}
    forks.run(trainings.arguments(output, **resumed), 1)
    check_bitwise(tmp_path, [case])
    before, after = (
        load_file(path / "trained.safetensors") for path in (earlier, tmp_path / case.name / "final")
    )
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    assert torch.equal(before[name], after[name])


def quantised(stage: int, lora: bool, *bits: int) -> Case:
    return Case(stage, 2, lora, 0, MIDDLE, more=(("frozen_bits", list(bits)),))


@pytest.mark.slow
def test_resume_is_bitwise_equal_over_quantised_weights(forks, trainings, tmp_path):
    """And no scale of theirs is written."""
    cases = [quantised(2, True, 4, 8), quantised(1, False, 8)]
    run_cases(forks, trainings, tmp_path, cases)
    check_bitwise(tmp_path, cases)
    for path in tmp_path.glob("*/checkpoint-*/global_step*/*model_states.pt"):
        names = torch.load(path, weights_only=False)["module"]
        assert names and not [name for name in names if "absmax" in name or "SCB" in name]


@pytest.mark.slow
def test_another_number_of_processes_goes_on_alike(forks, trainings, few):
    check_moved(forks, trainings, few, FEW)


@pytest.mark.long
def test_resume_in_every_case(forks, trainings, tmp_path):
    assert len(ALL) == 48
    run_cases(forks, trainings, tmp_path, ALL)
    check_bitwise(tmp_path, ALL)
    check_moved(forks, trainings, tmp_path, ALL)
