"""Weights on NVMe: one store of them for the whole process."""

from typing import Any

import torch


def share_nvme_store() -> None:
    """Have DeepSpeed open its folder of offloaded weights once in this process, and not for every block.

    Encoder, decoder, projector and engine each make such a store, which begins by emptying the folder that they share:
    weights that went there before could not be read back.
    """
    from deepspeed.runtime.zero import partition_parameters  # here: importing it chooses the device

    make = partition_parameters.AsyncPartitionedParameterSwapper
    if isinstance(make, _Shared):
        return
    partition_parameters.AsyncPartitionedParameterSwapper = _Shared(make)


class _Shared:
    """Makes a store for each type of number at the first call, and gives the same one afterwards."""

    def __init__(self, make: type) -> None:
        self._make = make
        self._made: dict[torch.dtype, Any] = {}

    def __call__(self, config: Any, dtype: torch.dtype) -> Any:
        if dtype not in self._made:
            self._made[dtype] = self._make(config, dtype)
        return self._made[dtype]
