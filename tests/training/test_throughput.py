import time

import pytest
import torch

from training.throughput import ThroughputMeter


def batch(images):
    made = {
        "attention_mask": torch.tensor([[1, 1, 1, 0]] * 2),
        "labels": torch.tensor([[-100, 5, 6, -100]] * 2),
    }
    return made | ({"pixel_values": torch.zeros(images, 3, 2, 2)} if images else {})


def test_rates_count_what_is_not_padding_and_leave_pauses_out():
    meter = ThroughputMeter()
    assert meter.read(torch.device("cpu")) == {}
    meter.count([batch(3), batch(0)])
    with meter.paused():
        time.sleep(0.3)
    time.sleep(0.1)
    rates = meter.read(torch.device("cpu"))
    assert rates["supervised_tokens_per_second"] == pytest.approx(
        rates["tokens_per_second"] * 8 / 12, rel=1e-3
    )
    assert rates["images_per_second"] == pytest.approx(rates["tokens_per_second"] * 3 / 12, rel=1e-2)
    assert 12 / 0.3 < rates["tokens_per_second"] <= 12 / 0.1
    assert meter.read(torch.device("cpu")) == {}
