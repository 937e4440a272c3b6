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
            RECOMPUTED,
            {"zero_stage": 2, "lang_lora_dim": 2, "lang_lora_module_name": "layers."},
            1,
            marks=pytest.mark.long,
        ),
        pytest.param(
            RECOMPUTED, {"zero_stage": 0, "packing": True, "precision": "bf16"}, 1, marks=pytest.mark.long
        ),
        pytest.param(RECOMPUTED, {"zero_stage": 0, "attention": "cross"}, 1, marks=pytest.mark.long),
        pytest.param(
            RECOMPUTED,
            {"zero_stage": 3, "packing": True, "per_device_train_batch_size": 2},
            2,
            marks=pytest.mark.long,
        ),
    ],
    ids=["ZeRO-0", "compiled ZeRO-2", "ZeRO-2 LoRA", "packed bf16", "cross", "ZeRO-3 packed"],
)
def test_the_losses_are_those_without_it(cheaper, flags, processes, trainings, tmp_path):
    """Of a fresh run, of one that is resumed in another process, and of one without."""
    whole, resumed, plain = (tmp_path / name for name in ("whole", "resumed", "plain"))
    plans = [
        [
            {"train": trainings.arguments(whole, **SHORT, **cheaper, **flags)},
            {"copy": str(whole), "to": str(resumed), "until": 2},
        ],
        [
            {
                "train": trainings.arguments(
                    resumed, **SHORT, **cheaper, **flags, resume_from_checkpoint="auto"
                )
            },
            {"train": trainings.arguments(plain, **SHORT, **flags)},
        ],
    ]
    for number, plan in enumerate(plans):
        trainings.run_plan(plan, tmp_path, str(number), processes=processes)
    expected = trainings.losses(plain)
    assert len(expected) == 4
    for output in (whole, resumed):
        np.testing.assert_allclose(
            trainings.losses(output), expected, atol=2e-3 if "bf16" in str(flags) else 1e-5
        )
