"""Packing: everything once, no row over a budget, rows nearly full."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.batching.packing import pack
from utils.data.spec import DataError


def packed(
    tokens: list[int], images: list[int], max_tokens: int, max_images: int, seed: int = 0
) -> list[list]:
    rng = np.random.default_rng(seed)
    plan = pack(
        np.array(tokens, dtype=np.int64), np.array(images, dtype=np.int64), max_tokens, max_images, rng
    )
    return [plan[row].tolist() for row in range(len(plan))]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 4)), max_size=60),
    st.integers(50, 90),
    st.integers(4, 9),
    st.integers(0, 3),
)
def test_every_conversation_is_in_one_row_and_no_row_over_a_budget(sizes, max_tokens, max_images, seed):
    tokens, images = [each[0] for each in sizes], [each[1] for each in sizes]
    rows = packed(tokens, images, max_tokens, max_images, seed)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    for row in rows:
        assert row and sum(tokens[index] for index in row) <= max_tokens
        assert sum(images[index] for index in row) <= max_images
    assert rows == packed(tokens, images, max_tokens, max_images, seed)


@pytest.mark.parametrize(("max_images", "over"), [(8, 1.03), (16, 1.005)])  # with 8, both budgets bind
def test_rows_are_nearly_full(max_images: int, over: float) -> None:
    """Lengths as of pictures of 257 tokens with short dialogues; more windows than one."""
    rng = np.random.default_rng(0)
    images = rng.choice([0, 1, 1, 2, 3], 70_000)
    tokens = np.minimum(images * 257 + rng.lognormal(5, 0.7, len(images)).astype(int) + 40, 4096)
    rows = len(pack(tokens, images, 4096, max_images, rng))
    least = max(tokens.sum() / 4096, images.sum() / max_images)
    assert rows <= over * least


def test_a_conversation_over_a_budget_is_named() -> None:
    with pytest.raises(DataError, match=r"conversation 1 has 11 tokens.*--max_seq_len 10"):
        packed([5, 11], [0, 0], 10, 1)
    with pytest.raises(DataError, match=r"conversation 0 has 3 images.*--max_images_per_row 2"):
        packed([5], [3], 10, 2)
