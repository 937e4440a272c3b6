"""Sizes worked out by hand: a model of 100 + 1000 elements, of which 100 learn, over 4 processes."""

from dataclasses import replace

import torch

from training.memory.states import Sharding, Weights, copied_for_saving, states
from training.sharding import Offload

WEIGHTS = Weights(
    tensors=(60, 40, 1000), groups=((60,), (40,)), returning=((60, True), (40, True), (1000, False))
)


def at(stage, dtype=torch.bfloat16, gpus=4, offload=Offload(), **sizes):  # noqa: B008 (frozen)
    values = dict(reduce_bucket=10, max_reuse_distance=10**9, persistence_threshold=50) | sizes
    return states(WEIGHTS, Sharding(gpus, stage, offload, **values), dtype)


def test_stage_0_has_everything_everywhere():
    held = at(0)
    assert held.resting == {"weights": 2200, "optimizer": 100 * (4 + 8)}
    assert held.accumulated == 200 and held.stepping == {"gradients": 200 + 400}
    assert at(0, torch.float32).resting == {"weights": 4400, "optimizer": 800}


def test_stages_1_and_2_split_the_optimizer():
    for stage in (1, 2):
        held = at(stage)
        # Groups of 60 and 40 in four parts of even numbers: 16 and 10.
        assert held.resting == {"weights": 2200, "optimizer": 12 * 26}
        assert held.passing == {"communication": 20}
    assert at(1).accumulated == 200
    assert at(2).accumulated == 200  # each process owns a part of both tensors


def test_stage_3_splits_all_but_the_small_and_gathers_what_returns():
    held = at(3)
    assert held.resting["weights"] == (15 + 10 + 250) * 2 + 40 * 2  # 40 is below the threshold
    assert held.resting["optimizer"] == 12 * 25 and held.resting["gradients"] == 50
    assert held.passing == {"gathered": (60 + 1000) * 2}
    assert at(3, max_reuse_distance=100).passing == {"gathered": 2000}  # the last alone
    assert at(3, gpus=1).passing == {"gathered": 0}


def test_offloading_moves_to_the_host_and_to_nvme():
    held = at(2, offload=Offload("cpu"))
    assert held.resting["optimizer"] == 0 and held.host >= 12 * 26
    held = at(3, offload=Offload("cpu", "cpu"))
    assert held.resting["weights"] == 80 and held.resting["optimizer"] == 0
    assert held.host >= 12 * 25 + 275 * 2
    held = at(3, offload=Offload("cpu", "nvme", "/fast"))
    assert held.disk == 275 * 2 and held.host >= 12 * 25


def test_quantised_weights_take_their_bits_and_the_scales():
    """In 4 bits a byte for 64 elements and 4 for 256 of these: 1000 x (1/2 + 1/64 + 1/4096) = 516."""
    for bits, size in ((4, 516), (8, 1000)):
        weights = replace(WEIGHTS, quantised=((bits, 900), (bits, 100)))
        for stage in (0, 1, 2):
            held = states(weights, Sharding(4, stage, reduce_bucket=10), torch.bfloat16)
            assert held.resting["weights"] == 200 + size


def test_what_is_copied_for_a_save_in_the_background():
    """Moments and master weights of the first process's part, in single precision; the trained weights beside them."""

    weights = replace(WEIGHTS, in_checkpoint={"trained": 100, "full": 1300})  # 200 are merged

    def copied(stage, dtype=torch.bfloat16, gpus=4, **how):
        return copied_for_saving(weights, Sharding(gpus, stage), dtype, **how)

    assert copied(0) == 100 * (4 + 8) + 2 * 100 * 2
    assert copied(0, torch.float32) == 100 * 8 + 2 * 100 * 4
    assert copied(1) == copied(2) == 26 * 12 + 2 * 100 * 2
    assert copied(3) == 25 * 12 + 100 * 2
    assert copied(1, form="full") == 26 * 12 + 100 * 2 + 1300 * 2
    assert copied(3, form="full") == 25 * 12 + 1300 * 2
    assert copied(1, form="full", model_only=True) == 1300 * 2 and copied(1, model_only=True) == 100 * 2


def test_frozen_weights_within_a_node_are_split_over_it_and_what_learns_stays_whole():
    """2 nodes of 4: of the 1000 that are frozen each holds 250, of 60 and 40 that learn 8 and 5 beside the whole."""
    held = at(3, gpus=8, within="node", node=4)
    assert held.resting["weights"] == (250 + 8 + 5 + 60 + 40) * 2
    assert held.passing == {"gathered": 2000}
    assert held.resting["optimizer"] == 12 * 13
    held = at(3, gpus=8, within="none", node=4)
    assert held.resting["weights"] == (1000 + 8 + 5 + 60 + 40) * 2
    assert held.passing == {"gathered": 0}
