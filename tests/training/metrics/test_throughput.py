"""Measures of a step: rates, waiting, memory and the share of the peak, against hand-made batches and clocks."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from training.metrics import throughput
from training.metrics.mfu import Efficiency, StepFlops, visible_pairs
from training.metrics.throughput import ThroughputMeter
from utils.data import Batch

CPU = torch.device("cpu")


def batch(images: int) -> Batch:
    """Two rows of a text token, an image token, a text token and padding."""
    made = {
        "attention_mask": torch.tensor([[1, 1, 1, 0]] * 2),
        "mm_token_type_ids": torch.tensor([[0, 1, 0, 0]] * 2),
        "labels": torch.tensor([[-100, 5, 6, -100]] * 2),
    }
    return Batch(made | ({"pixel_values": torch.zeros(images, 3, 2, 2)} if images else {}), images=images)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=100.0)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


def learn(meter: ThroughputMeter, each: Batch) -> None:
    """A step of one batch."""
    meter.before_batch(each)
    meter.on_step_end()


def slow(clock: SimpleNamespace, batches: list, seconds: float):
    for each in batches:
        clock.now += seconds
        yield each


def test_measures_of_two_steps(clock: SimpleNamespace) -> None:
    flops = StepFlops(10.0, per_image_token=4.0, per_pair=1.0, per_image=100.0, per_supervised_token=5.0)
    meter = ThroughputMeter(Efficiency(flops, "mmca", peak=1000.0))
    assert meter.read(CPU) == {}
    clock.now += 1000  # before training begins
    with meter.pausing():
        clock.now += 1000
    batches = meter.reading(slow(clock, [batch(3), batch(0)], 0.5))
    for each in batches:
        learn(meter, each)
        clock.now += 1.5
    with meter.pausing():
        clock.now += 60
    measures = meter.read(CPU)
    assert measures.pop("peak_memory_gib") > 0.05
    # 12 tokens, 4 of images, 8 supervised, 3 images in 4 s; 4 rows with 1 and 3 keys to see for their text tokens.
    needed = 10 * 8 + 4 * 4 + 1 * 4 * (1 + 3) + 100 * 3 + 5 * 8
    assert measures == {
        "tokens_per_second": 3.0,
        "supervised_tokens_per_second": 2.0,
        "images_per_second": 0.75,
        "step_seconds": 2.0,
        "data_wait_share": 0.25,
        "mfu": pytest.approx(needed / 4 / 1000, abs=1e-4),
    }
    assert meter.read(CPU) == {}


def test_an_image_that_was_encoded_earlier_costs_no_encoder(clock: SimpleNamespace) -> None:
    flops = StepFlops(0.0, 0.0, per_pair=0.0, per_image=100.0, per_supervised_token=0.0)
    meter = ThroughputMeter(Efficiency(flops, "mmca", peak=1000.0))
    features = replace(batch(0), images=2)
    for each in meter.reading(iter([features, batch(1)])):
        clock.now += 1
        learn(meter, each)
    measures = meter.read(CPU)
    assert measures["images_per_second"] == 1.5 and measures["mfu"] == 0.05


@pytest.mark.parametrize(("attention", "pairs"), [("mmca", 8), ("cross", 10), ("causal", 12)])
def test_keys_that_queries_see(attention: str, pairs: int) -> None:
    """As a padded batch and packed, with padding at position 0 in both."""
    padded = batch(2).inputs
    packed = {
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 0, 0]]),
        "mm_token_type_ids": torch.tensor([[0, 1, 0, 0, 1, 0, 0, 0]]),
    }
    for each in (padded, packed):
        positions, real = throughput._positions(each)
        assert visible_pairs(attention, positions, each["mm_token_type_ids"], real) == pairs
