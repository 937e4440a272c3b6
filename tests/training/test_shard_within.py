"""`--shard_within`: wherever frozen weights are, training is the same, between two nodes of two processes each."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file


@pytest.mark.parametrize(
    "steps", [pytest.param(5, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.long)]
)
def test_losses_are_those_of_plain_zero_3_and_checkpoints_do_not_depend_on_it(
    forks, trainings, tmp_path, steps
):
    """And a run that goes on with its frozen weights elsewhere is the same bit for bit; so, to rounding, is one whose
    optimizer steps in main memory. The short ones accumulate.
    """
    saved = steps * 4 // 5
    flags = {
        "zero_stage": 3,
        "max_steps": steps,
        "per_device_train_batch_size": 1,
        "lang_lora_dim": 4,
        "eval_strategy": "steps",
        "eval_steps": saved,
        "save_strategy": "steps",
        "save_steps": saved,
        "checkpoint_form": "trained",
        "learning_rate": 1e-3,
        "gradient_accumulation_steps": 2 if steps == 5 else 1,
    }
    out = {"offload_optimizer": "cpu"}
    runs = {"all": {}, "node": {}, "none": {}, "node-out": out, "none-out": out}
    for each, more in runs.items():
        within = each.partition("-")[0]
        forks.run(
            trainings.arguments(tmp_path / each, **flags, **more, shard_within=within), ranks=4, per_node=2
        )
    for source, within in (("node", "none"), ("none", "node")):
        output = trainings.copy(tmp_path / source, tmp_path / f"{source}-{within}", saved)
        more = {"shard_within": within, "resume_from_checkpoint": True}
        forks.run(trainings.arguments(output, **flags, **more), ranks=4, per_node=2)

    plain = losses_of(trainings, tmp_path / "all")
    assert len(plain) == steps + 3 and plain[-1] != plain[0]
    for each in list(runs)[1:]:
        losses = losses_of(trainings, tmp_path / each)
        print(f"{each}: losses differ by {np.abs(losses - plain).max():.1e} at most")
        assert losses[0] == plain[0] and np.allclose(losses, plain, rtol=0, atol=1e-5)
    for source, within in (("node", "none"), ("none", "node")):
        resumed = tmp_path / f"{source}-{within}"
        assert trainings.losses(resumed) == trainings.losses(tmp_path / source)
        one, two = (
            load_file(each / "final" / "trained.safetensors") for each in (tmp_path / source, resumed)
        )
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def losses_of(trainings, output):
    """Those of evaluations and of steps, in their order; the first is of the evaluation before the first step."""
    lines = trainings.history(output)
    return np.array([line[name] for line in lines for name in ("loss", "eval_loss") if name in line])
