"""Bytes worked out by hand: 100 elements learn and 1000 are frozen, in bf16, on 2 nodes of 4 GPUs."""

import pytest
import torch

from training.memory.states import Sharding, Weights
from training.memory.traffic import Traffic, traffic

WEIGHTS = Weights((60, 40, 1000), ((60,), (40,)), ((60, True), (40, True), (1000, False)))
LEARNED, FROZEN = 200, 2000  # bytes
ALL, NODE = 7 / 8, 3 / 4  # that a ring of 8 sends, and one of 4


def sent(stage, within="all", accumulation=1, **sizes):
    values = {"max_reuse_distance": 0, "persistence_threshold": 0, "node": 4, **sizes}
    return traffic(WEIGHTS, Sharding(8, stage, within=within, **values), torch.bfloat16, accumulation)


@pytest.mark.parametrize("stage, accumulation, times", [(0, 3, 2), (1, 3, 3), (2, 1, 3), (2, 3, 7)])
def test_whole_weights_send_only_what_learns(stage, accumulation, times):
    """A reduction to all is two rounds; stages 1 and 2 then gather what was stepped."""
    bytes_ = times * LEARNED * ALL
    assert sent(stage, accumulation=accumulation) == Traffic(bytes_, bytes_)


def test_plain_stage_3_gathers_everything_in_both_passes_of_each_micro_batch():
    for accumulation in (1, 3):
        # The last tensor is still there on the way back, however short the memory is.
        found = accumulation * (2 * LEARNED + FROZEN + LEARNED) * ALL
        assert sent(3, accumulation=accumulation) == Traffic(found, found)
    assert sent(3, max_reuse_distance=10**9).between == (2 * LEARNED + FROZEN) * ALL


@pytest.mark.parametrize("within, inside", [("node", FROZEN * NODE), ("none", 0)])
def test_frozen_weights_never_cross_nodes_and_what_learns_does_so_twice(within, inside):
    found = sent(3, within)
    assert found.between == 2 * LEARNED * ALL
    assert found.inside == found.between + inside
