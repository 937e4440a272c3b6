from dataclasses import replace

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from training.memory.plan import HEADROOM, OUTSIDE, Planner, Training
from training.memory.states import Sharding
from training.memory.trace import BatchShape, largest_batches
from training.sharding import Offload
from utils.model import VisualChatConfig
from utils.model.quantised import FrozenBits

pytestmark = pytest.mark.integration

CONFIG = VisualChatConfig(
    text_config=LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
    ),
    vision_config=CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    ),
    image_token_id=499,
    image_seq_length=5,
)


def training(rows=2, stage=3, gpus=8, **changes):
    sharding = Sharding(gpus, stage, reduce_bucket=1000, max_reuse_distance=0)
    made = Training(CONFIG, torch.bfloat16, largest_batches(rows, 128, 4, 5), sharding)
    return replace(made, **changes)


def memory_for(plan):
    """Bytes of a GPU that has just room for a plan."""
    return (plan.peak + OUTSIDE) / (1 - HEADROOM) + 1


@pytest.fixture(scope="module")
def planner():
    return Planner()


def test_the_largest_batches_are_full_with_the_most_images_and_with_none():
    with_images, without = largest_batches(3, 4090, 8, 257)
    assert with_images == BatchShape(3, 4096, 8, 257) and without.images == 0  # padded to a multiple of 8
    assert (with_images.text_tokens, with_images.learned) == (4096 - 8 * 257, 3 * (4096 - 8 * 257))
    assert largest_batches(1, 1000, 8, 257)[0].images == 3  # no more fit, with some text
    assert [each.images for each in largest_batches(1, 256, 8, 257)] == [0]


def test_the_largest_batch_fits_and_one_more_row_does_not(planner):
    memory = memory_for(planner.plan(training(rows=7)))
    largest = planner.largest(training(rows=2), memory)
    assert largest.batch.rows == 7 and largest.fits(memory)
    assert not planner.plan(training(rows=8)).fits(memory)
    assert planner.largest(training(), OUTSIDE) is None


def test_the_cheapest_setting_gathers_nothing_where_the_weights_fit(planner):
    setting = training(stage=3, gradient_checkpointing=True)
    found = planner.cheapest(setting, 80e9, host=float("inf")).training
    assert (found.sharding.stage, found.gradient_checkpointing) == (2, False)


def test_a_quantised_encoder_takes_less_and_computes_as_much(planner):
    """Its two layers have 4 x 32 x 32 + 2 x 32 x 64 elements each in matrices, of two bytes or of fewer."""
    plain, encoder, both = (
        Planner().plan(training(stage=1, frozen_bits=FrozenBits(*bits))) for bits in ((4,), (4, 8), (4, 4))
    )
    elements = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert plain.device["weights"] - encoder.device["weights"] == elements
    saved = plain.device["weights"] - both.device["weights"]
    assert saved == pytest.approx(elements * (2 - 0.5 - 1 / 64 - 4 / (64 * 256)), abs=1)
    assert plain.activations.peak == encoder.activations.peak == both.activations.peak  # the decoder's
    assert "frozen decoder in 4 bits, frozen encoder in 8 bits" in encoder.training.describe()


OUT = Sharding(8, 3, Offload("cpu", "cpu"), reduce_bucket=1000, max_reuse_distance=0)


@pytest.mark.parametrize(
    "changes, described",
    [
        ({}, "ZeRO-3, no checkpointing"),
        ({"gradient_checkpointing": True}, "ZeRO-3, checkpointing"),
        ({"gradient_checkpointing": True, "sharding": OUT}, "on cpu"),
    ],
)
def test_with_less_memory_it_splits_then_recomputes_then_moves_out(planner, changes, described):
    memory = memory_for(planner.plan(training(**changes)))
    found = planner.cheapest(training(stage=0), memory, host=float("inf"))
    assert described in found.training.describe()


def test_a_save_in_the_background_counts_in_main_memory(planner):
    plan = planner.plan(training())
    saving = planner.plan(training(save_in_background=True))
    assert plan.saving == 0 and saving.saving >= 12 * plan.weights.learned // 8
    assert saving.peak == plan.peak and saving.fits(memory_for(plan))
    memory = memory_for(plan)
    assert planner.cheapest(training(save_in_background=True), memory, saving.saving)
    assert planner.cheapest(training(save_in_background=True), memory, host=saving.saving // 2) is None
