"""On a GPU: every kernel that trains there against the definition in float64, and steps that do not wait.

The cases are those of `benchmarks.gpu`, which measures them in a few minutes where pytest is not at hand.
"""

import importlib.util

import pytest
import torch

from benchmarks import parity
from benchmarks.parity import AttentionCase, DecoderCase
from benchmarks.random_models import random_model
from benchmarks.train_step import Step
from training.memory.trace import enable_checkpointing
from utils.model import freeze

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", parity.cases(), ids=lambda case: f"{case.kernel}, {case}")
def test_kernels_compute_the_definition(case: AttentionCase | DecoderCase) -> None:
    if case.kernel == "flash" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    used, error = case.errors("cuda")
    assert error <= case.tolerance
    assert used in (case.kernel, "causal")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_never_waits_for_the_gpu(checkpointing: bool) -> None:
    model, _ = random_model("tiny", torch.bfloat16, "cuda")
    freeze(model)
    model.train()
    if checkpointing:
        enable_checkpointing(model)
    step = Step(model, 128, 2, 0.25, conversations=2)
    step.run("ours")  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run("ours")
    finally:
        torch.cuda.set_sync_debug_mode("default")
