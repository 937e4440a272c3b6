import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.loaders import PADDING, GlobalBatchSampler, grouped_by_length


def global_steps(length, batch_size, world_size, epoch=0, **options):
    """What all processes together see in each micro-step."""
    samplers = [
        GlobalBatchSampler(length, batch_size, rank, world_size, **options) for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    per_rank = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in per_rank} == {len(samplers[0])}
    return [[index for batch in step for index in batch] for step in zip(*per_rank, strict=True)]


@given(st.integers(1, 40), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(0, 3))
def test_global_batches_do_not_depend_on_the_number_of_processes(length, batch_size, world_size, epoch):
    together = global_steps(length, batch_size, world_size, epoch, seed=7)
    alone = global_steps(length, batch_size * world_size, 1, epoch, seed=7)
    assert [[index for index in step if index != PADDING] for step in together] == alone
    assert length < 9 or alone != global_steps(length, batch_size * world_size, 1, epoch + 1, seed=7)
    assert sorted(index for step in alone for index in step) == list(range(length))
    if world_size > 1:
        assert all(len(step) == batch_size * world_size for step in together)


def test_order_of_the_data_without_a_seed():
    assert global_steps(5, 2, 1) == [[0, 1], [2, 3], [4]]
    assert global_steps(5, 2, 2) == [[0, 1, 2, 3], [4, PADDING, PADDING, PADDING]]


def test_drop_last_leaves_out_what_fills_no_global_batch():
    assert global_steps(7, 2, 2, drop_last=True) == [[0, 1, 2, 3]]


lengths_of = st.lists(st.integers(1, 500), min_size=1, max_size=60)


@given(lengths_of, st.integers(1, 4), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(0, 3))
def test_like_lengths_do_not_depend_on_how_a_step_is_spread(
    lengths, batch_size, world_size, accumulation, epoch
):
    options = {"seed": 7, "lengths": lambda epoch: np.array(lengths)}
    spread = global_steps(len(lengths), batch_size, world_size, epoch, accumulation=accumulation, **options)
    together = global_steps(len(lengths), batch_size * world_size * accumulation, 1, epoch, **options)
    flat = [index for step in spread for index in step if index != PADDING]
    assert flat == [index for step in together for index in step]
    assert sorted(flat) == list(range(len(lengths)))


def test_steps_are_of_like_length_and_the_longest_comes_first():
    lengths = np.random.default_rng(0).integers(1, 1000, 4003)
    order = grouped_by_length(lengths, 8, np.random.default_rng(1))
    steps = lengths[order[:4000]].reshape(-1, 8)
    assert steps[0, 0] == lengths[order[:4000]].max()
    assert np.median(np.ptp(steps, axis=1)) < 30  # of 1000; at random it is 780
    assert np.abs(np.diff(steps.mean(axis=1))).mean() > 200  # one step tells nothing about the next
    assert (grouped_by_length(lengths, 8, np.random.default_rng(2)) != order).any()
