import pytest

from training.sharding import ZeroArguments
from utils.commands import UsageError


def test_offloading_goes_into_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr("training.sharding.has_async_io", lambda: True)
    flags = ZeroArguments(
        zero_stage=3, offload_optimizer="cpu", offload_param="nvme", nvme_path=str(tmp_path)
    )
    zero = flags.deepspeed_settings(None)["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert zero["offload_param"] == {"device": "nvme", "pin_memory": True, "nvme_path": str(tmp_path)}


@pytest.mark.parametrize(
    "flags, says",
    [
        ({"offload_optimizer": "cpu"}, "--offload_optimizer needs ZeRO: add --zero_stage"),
        ({"offload_param": "cpu", "zero_stage": 2}, "--offload_param cpu needs --zero_stage 3"),
        ({"offload_param": "nvme", "zero_stage": 2}, "nvme needs --zero_stage 3"),
        ({"offload_param": "nvme", "zero_stage": 3}, "--nvme_path (not given): give a folder"),
        ({"nvme_path": "/tmp", "zero_stage": 3}, "add --offload_param nvme"),
        ({"shard_within": "node", "zero_stage": 2}, "--shard_within node needs --zero_stage 3"),
        ({"shard_within": "none", "zero_stage": 3, "offload_param": "cpu"}, "leave out --offload_param"),
    ],
)
def test_flags_that_contradict_each_other_get_one_line(flags, says):
    with pytest.raises(UsageError) as error:
        ZeroArguments(**flags).deepspeed_settings(None)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "flags, processes",
    [
        ({"zero_stage": 3}, None),
        ({"zero_stage": 3, "shard_within": "node"}, 4),
        ({"zero_stage": 3, "shard_within": "none"}, 1),
        ({"zero_stage": 2, "shard_within": "none"}, None),  # they are whole anyway
    ],
)
def test_frozen_weights_are_split_over_a_node_or_nothing(monkeypatch, flags, processes):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    arguments = ZeroArguments(**flags)
    arguments.deepspeed_settings(None)
    assert arguments.frozen_over == processes


def test_nodes_with_unlike_numbers_of_processes_cannot_split_within(monkeypatch):
    monkeypatch.setattr("training.sharding.everyone", lambda mine: [mine, 8])
    with pytest.raises(UsageError, match="as many processes on every node"):
        ZeroArguments(zero_stage=3, shard_within="node").deepspeed_settings(None)
