import pytest
import torch
from torch import nn

from training.memory.shapes import LiveMemory


def test_storages_are_counted_once_and_leave_when_the_last_view_does():
    run = LiveMemory("cpu")
    with run:
        whole = torch.zeros(1000)
        part = whole.view(10, 100)[3]
        assert run.total == 4000
        del whole
        assert run.total == 4000
        del part
    assert run.total == 0 and run.peak == 4000


def test_labels_say_whose_the_peak_is():
    run = LiveMemory("cpu")
    with run:
        with run.labelled("kept"):
            kept = torch.zeros(100)
        with run.labelled("passing"):
            torch.zeros(300)
        torch.zeros(50)
    assert run.at_peak == {"kept": 400, "passing": 1200}
    assert run.live["kept"] == kept.nbytes and run.total == 400


def test_it_agrees_with_pytorch_s_profiler():
    """The profiler hears of every allocation of the CPU's allocator, those within kernels too."""
    model = nn.Sequential(nn.Linear(300, 800), nn.GELU(), nn.Linear(800, 300), nn.LayerNorm(300))
    inputs = torch.randn(256, 300)
    run = LiveMemory("cpu")
    for tensor in (inputs, *model.parameters()):
        run.enter(tensor)
    before = run.total
    with run:
        model(inputs).square().sum().backward()
    model.zero_grad(set_to_none=True)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        model(inputs).square().sum().backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert run.peak - before == pytest.approx(peak, rel=0.05)
