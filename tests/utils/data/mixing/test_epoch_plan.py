"""Grouping loses nothing and repeats nothing, whatever the sizes and seeds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.conversation import Conversation, Image, Turn, join
from utils.data.mixing.mixture import group, visit

sizes = st.sampled_from([0, 1, 2]) | st.integers(3, 400)
seeds = st.integers(0, 2**32)


@settings(max_examples=100, deadline=None)
@given(size=sizes, most=st.integers(1, 7), max_images=st.integers(1, 8), seed=seeds)
def test_every_index_is_in_exactly_one_group(size: int, most: int, max_images: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, max_images, size=size, endpoint=True)
    groups = group(counts, most, max_images, np.random.default_rng(seed))
    members = [groups[number].tolist() for number in range(len(groups))]
    assert sorted(index for each in members for index in each) == list(range(size))
    assert all(1 <= len(each) <= most for each in members)
    assert all(counts[each].sum() <= max_images for each in members)


@given(size=st.integers(1, 30), count=st.integers(1, 70), epochs=st.integers(1, 6), seed=seeds)
def test_after_any_number_of_epochs_all_have_come_equally_often(
    size: int, count: int, epochs: int, seed: int
) -> None:
    visits = [visit(np.arange(size), count, epoch, (seed, 1)) for epoch in range(epochs)]
    assert {len(each) for each in visits} == {count}
    times = np.bincount(np.concatenate(visits), minlength=size)
    assert times.sum() == epochs * count and times.max() - times.min() <= 1


def test_joining_keeps_turns_and_images_in_order() -> None:
    a, b = Image("a"), Image("b")
    first = Conversation((Turn("1", "one", (a,)), Turn("2", "two")), "x#1")
    second = Conversation((Turn("3", "three", (b,)),), "y#2")
    joined = join([first, second])
    assert [turn.question for turn in joined.turns] == ["1", "2", "3"]
    assert joined.images == (a, b)
    assert joined.source == "x#1 + y#2"
    assert join([first]) is first
