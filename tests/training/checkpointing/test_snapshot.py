"""Copies that later steps do not change, and whose files hold what files of the originals would."""

import errno
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training.checkpointing.snapshot import Copies
from training.checkpointing.writer import CheckpointWriter, SavingError


class Scale:
    """As DeepSpeed's loss scalers, which travel in its files."""

    def __init__(self):
        self.value, self.window = 2.0, torch.ones(3)


def state_of_everything():
    flat = torch.arange(12.0)
    return {
        "flat": flat,
        "first": flat[:4].view(2, 2),
        "turned": flat.view(3, 4).t(),
        "half": torch.arange(3).to(torch.bfloat16),
        "empty": torch.empty(0),
        "step": torch.tensor(7),
        "parameter": nn.Parameter(torch.ones(2)),
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}, {"lr": 2e-3}],
        "scale": Scale(),
    }


def test_a_copy_has_the_values_types_and_sharing_of_the_original():
    original = state_of_everything()
    copied = Copies().snapshot(original)()
    for name, value in original.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(copied[name], value) and copied[name].dtype == value.dtype, name
            assert copied[name].stride() == value.stride() and type(copied[name]) is type(value), name
    assert copied["groups"] == original["groups"]
    copied["flat"][0] = 100
    assert copied["first"][0, 0] == 100 and copied["turned"][0, 0] == 100, "one storage, as before"


def test_later_changes_do_not_reach_a_copy():
    original = state_of_everything()
    take = Copies().snapshot(original)
    original["flat"].zero_()
    original["step"] += 1
    with torch.no_grad():
        original["parameter"].zero_()
    original["groups"][0]["lr"] = 0.0
    original["scale"].value = 1.0
    original["scale"].window.zero_()
    del original["half"]
    copied = take()
    assert copied["first"].tolist() == [[0, 1], [2, 3]] and copied["step"] == 7
    assert copied["parameter"].tolist() == [1, 1] and copied["half"].tolist() == [0, 1, 2]
    assert copied["groups"][0]["lr"] == 1e-3
    assert copied["scale"].value == 2.0 and copied["scale"].window.tolist() == [1, 1, 1]


def test_the_memory_of_a_save_is_filled_again_by_the_next_one():
    copies, places = Copies(), []
    for value in (1.0, 2.0):
        copies.begin()
        weight = copies.tensor(torch.full((3, 4), value).t())
        taken = copies.snapshot({"moments": [torch.full((3, 4), value + each) for each in (10, 20)]})()
        tensors = [weight, *taken["moments"]]
        assert [each.unique().tolist() for each in tensors] == [[value], [value + 10], [value + 20]]
        places.append({each.data_ptr() for each in tensors})
    assert len(places[0]) == 3 and places[0] == places[1]


@pytest.mark.gpu
def test_tensors_on_a_device_are_copied_to_main_memory():
    flat = torch.arange(12.0, device="cuda")
    copied = Copies().snapshot({"flat": flat, "part": flat[3:5]})()
    assert copied["flat"].device.type == "cpu" and torch.equal(copied["flat"], flat.cpu())
    copied["flat"][3] = 100
    assert copied["part"][0] == 100


def test_no_room_for_a_copy_costs_the_checkpoint(tmp_path):
    """As an error of the disk does, and not in the middle of DeepSpeed's save."""
    from training.checkpointing.deepspeed_state import DurableCheckpointEngine  # imports DeepSpeed: seconds

    def keep(state):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    settings = SimpleNamespace(checkpoint_config={"checkpoint_serialization": True})
    writer = DurableCheckpointEngine(settings, keep)
    writer.save({}, str(tmp_path / "state.pt"))
    with pytest.raises(OSError, match="--save_in_background false") as raised:
        writer.writes[0]()
    assert raised.value.errno == errno.ENOMEM


def test_training_stops_at_one_failed_save_too_many_in_a_row():
    writer = CheckpointWriter(SimpleNamespace(args=SimpleNamespace(max_failed_saves=2)), run=None)

    def save(succeeds):
        with writer.tolerating_failed_saves():
            if not succeeds:
                raise SavingError("checkpoint-5 could not be written (No space left on device)")

    for succeeds in (False, False, True, False, False):
        save(succeeds)
    with pytest.raises(SavingError, match="No space left"):
        save(False)
