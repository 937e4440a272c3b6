"""Histograms count everything, in bars with round borders."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data_report.charts import HEIGHT, WIDTH, histogram


def counts(chart) -> list[int]:
    return [int(bar.label.rsplit(": ", 1)[1].replace(",", "")) for bar in chart.bars]


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=200))
def test_everything_is_counted_once_and_drawn_inside(values: list[int]) -> None:
    chart = histogram("Tokens", np.array(values, dtype=np.int64), "tokens")
    assert sum(counts(chart)) == len(values)
    assert len(chart.bars) <= 50
    for bar, count in zip(chart.bars, counts(chart), strict=True):
        assert (bar.height > 0) == (count > 0)
        assert bar.x >= 0 and bar.x + bar.width <= WIDTH and 0 < bar.y <= HEIGHT


def test_few_numbers_get_a_bar_each() -> None:
    chart = histogram("Images", np.array([1, 1, 3]), "images")
    assert [bar.label for bar in chart.bars] == ["1 images: 2", "2 images: 0", "3 images: 1"]
    assert [tick.text for tick in chart.ticks] == ["1", "2", "3"]
    assert chart.summary == "median 1, mean 1.7, max 3"


def test_many_numbers_are_binned_with_round_borders() -> None:
    chart = histogram("Tokens", np.arange(37, 990), "tokens", limit=900, limit_label="--max_seq_len")
    assert [bar.label for bar in chart.bars[:2]] == ["0 to 49 tokens: 13", "50 to 99 tokens: 50"]
    assert chart.limit is not None and 0 < chart.limit < WIDTH
    assert histogram("Tokens", np.arange(100), "tokens", limit=4096).limit is None  # far off to the right


def test_shares() -> None:
    chart = histogram("Learned", np.array([0.0, 0.26, 1.0]), "", percent=True)
    assert len(chart.bars) == 20 and sum(counts(chart)) == 3
    assert chart.bars[5].label == "25 to 30 %: 1"
    assert [tick.text for tick in chart.ticks] == ["0 %", "50 %", "100 %"]


@pytest.mark.parametrize("percent", [True, False])
def test_nothing_is_no_error(percent: bool) -> None:
    assert histogram("Tokens", np.array([], dtype=np.int64), "", percent=percent).summary == "nothing"
