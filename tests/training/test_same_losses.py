"""`--gradient_checkpointing` and `--torch_compile` change costs, not losses: in a fresh run and in one resumed."""

import numpy as np
import pytest

SHORT = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
RECOMPUTED, COMPILED = {"gradient_checkpointing": True}, {"torch_compile": True}


@pytest.mark.parametrize(
    ("cheaper", "flags", "processes"),
    [
        pytest.param(RECOMPUTED, {"zero_stage": 0}, 1, marks=pytest.mark.slow),
        pytest.param(COMPILED | RECOMPUTED, {"zero_stage": 2}, 2, marks=pytest.mark.slow),
        pytest.param(
            RECOMPUTED, {"zero_stage": 0, "packing": True, "precision": "bf16"}, 1, marks=pytest.mark.long
        ),
        pytest.param(
            RECOMPUTED,
            {"zero_stage": 3, "packing": True, "per_device_train_batch_size": 2},
            2,
            marks=pytest.mark.long,
        ),
    ],
    ids=["ZeRO-0", "compiled ZeRO-2", "packed bf16", "ZeRO-3 packed"],
)
def test_the_losses_are_those_without_it(cheaper, flags, processes, forks, trainings, tmp_path):
    """Of a fresh run, of one that is resumed in another process, and of one without."""
    whole, plain = tmp_path / "whole", tmp_path / "plain"
    forks.run(trainings.arguments(whole, **SHORT, **cheaper, **flags), processes)
    resumed = trainings.copy(whole, tmp_path / "resumed", 2)
    again = trainings.arguments(resumed, **SHORT, **cheaper, **flags, resume_from_checkpoint="auto")
    forks.run(again, processes)
    forks.run(trainings.arguments(plain, **SHORT, **flags), processes)
    expected = trainings.losses(plain)
    assert len(expected) == 4
    for output in (whole, resumed):
        np.testing.assert_allclose(
            trainings.losses(output), expected, atol=2e-3 if "bf16" in str(flags) else 1e-5
        )
