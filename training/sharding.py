"""Sharding: its flags (ZeRO's stage and sizes, what is kept outside the GPU), the DeepSpeed configuration that they
make, and which weights ZeRO-3 gathers and splits together.

`--deepspeed_config FILE` replaces the flags by a JSON file of one's own (`user_config`).
"""

import os
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from utils.commands import UsageError
from utils.distributed import everyone, local_world_size
from utils.plugins import wing

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

AUTO = "auto"  # filled in from the training arguments by transformers' DeepSpeed integration


def flag(default: object, text: str) -> Any:
    """A flag's default and its text in --help."""
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class ZeroArguments:
    """How the training is spread over devices; a part of the training arguments."""

    zero_stage: Literal[0, 1, 2, 3] = flag(0, "ZeRO stage.")
    stage3_param_persistence_threshold: int = flag(
        10_000, "ZeRO-3 does not partition tensors with fewer elements than this."
    )
    stage3_max_live_parameters: int = flag(
        30_000_000, "ZeRO-3 keeps at most this many gathered elements at a time."
    )
    stage3_gather_layers: bool = flag(
        False,
        "ZeRO-3 gathers whole layers instead of single matrices: fewer, larger transfers; faster for small models.",
    )
    shard_within: Literal["all", "node", "none"] = flag(
        "all",
        "Over which processes ZeRO-3 splits a frozen weight. all: over all of them. node: over those of one node, so"
        " that frozen weights never cross between nodes. none: not at all, each device has it whole.",
    )
    offload_optimizer: Literal["none", "cpu"] = flag(
        "none", "Keep the optimizer's states in main memory and update them on the CPU."
    )
    offload_param: Literal["none", "cpu", "nvme"] = flag(
        "none", "Keep ZeRO-3's partitions of the weights off the GPU."
    )
    nvme_path: str | None = flag(None, "Folder on a fast local disk for weights offloaded to nvme.")
    deepspeed_config: str | None = flag(
        None,
        "Your own DeepSpeed configuration (JSON), in place of the ZeRO flags; every key is checked.",
    )
    dry_run_worst_batch: bool = flag(
        False,
        "Before the first step, run a whole step on the largest batch that the settings allow and compare its peak"
        " memory with the plan; the weights stay as they are.",
    )

    def deepspeed_settings(self, given: str | dict[str, Any] | None) -> dict[str, Any]:
        """DeepSpeed's configuration from the flags; `given` is what --deepspeed says.

        Raises `UsageError` for flags that contradict each other or the machine.
        """
        if self.deepspeed_config and given:
            raise UsageError("--deepspeed_config and --deepspeed: give one of the two")
        if isinstance(given, dict):
            return given
        if path := self.deepspeed_config or given:
            config = self._own(path, "--deepspeed_config" if self.deepspeed_config else "--deepspeed")
        else:
            self._check_offload()
            config = config_of_flags(self)
        check_shard_within(self.shard_within, config)
        if self.shard_within == "node" and len(set(everyone(local_world_size()))) > 1:
            raise UsageError("--shard_within node needs as many processes on every node as on the others")
        return config

    @property
    def frozen_over(self) -> int | None:
        """Over how many processes ZeRO-3 splits a frozen weight; None for all, and at other stages."""
        if self.zero_stage < 3:
            return None
        return {"all": None, "node": local_world_size(), "none": 1}[self.shard_within]

    def _own(self, path: str, flag: str) -> dict[str, Any]:
        config = wing("training.user_config.read_user_config", flag)(path, flag)
        for name in ("offload_optimizer", "offload_param"):
            if getattr(self, name) != "none":
                raise UsageError(f"--{name} has no effect beside {flag} {path}: set it in the file")
        zero = config.get("zero_optimization") or {}
        optimizer, weights = (
            (zero.get(f"offload_{what}") or {}).get("device") for what in ("optimizer", "param")
        )
        if optimizer == "nvme":
            raise UsageError(
                f"{flag} {path}: a run with its optimizer on nvme cannot be resumed, since DeepSpeed leaves what"
                ' is there out of its checkpoints: set the device of offload_optimizer to "cpu"'
            )
        if weights == "nvme":
            share_nvme_store()
        stage = zero.get("stage", 0)
        if self.zero_stage not in (0, stage):
            raise UsageError(
                f"--zero_stage {self.zero_stage} contradicts {flag} {path}, which has stage {stage}: give one"
            )
        self.zero_stage = stage
        return config

    def _check_offload(self) -> None:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise UsageError("--offload_optimizer needs ZeRO: add --zero_stage 1, 2 or 3")
        if self.offload_param != "none" and self.zero_stage != 3:
            raise UsageError(f"--offload_param {self.offload_param} needs --zero_stage 3")
        if self.offload_param != "nvme":
            if self.nvme_path:
                raise UsageError("--nvme_path is for what is offloaded to nvme: add --offload_param nvme")
            return
        if not self.nvme_path or not os.access(self.nvme_path, os.W_OK | os.X_OK):
            raise UsageError(
                f"--nvme_path {self.nvme_path or '(not given)'}: give a folder on a local disk to write to"
            )
        if not has_async_io():
            raise UsageError(
                "offloading to nvme needs DeepSpeed's async_io, which needs libaio and a compiler: apt install"
                " libaio-dev, or offload to cpu"
            )
        share_nvme_store()


def check_shard_within(where: str, config: dict[str, Any]) -> None:
    """Raise `UsageError` where `--shard_within` does not go with a DeepSpeed configuration."""
    zero = config.get("zero_optimization") or {}
    if where == "node" and zero.get("stage", 0) < 3:
        raise UsageError("--shard_within node needs --zero_stage 3: other stages keep weights whole (none)")
    if where == "all" or zero.get("stage", 0) < 3:
        return
    if (zero.get("offload_param") or {}).get("device", "none") != "none":
        raise UsageError(f"--shard_within {where} keeps weights on the device: leave out --offload_param")
    if (zero.get("zero_hpz_partition_size") or 1) > 1:
        raise UsageError(f"--shard_within {where} and zero_hpz_partition_size: give one of the two")


def has_async_io() -> bool:
    """Whether DeepSpeed's library for files on NVMe is built already, or can be built here."""
    from deepspeed.ops.op_builder import AsyncIOBuilder  # here: importing it chooses the device

    return AsyncIOBuilder().is_compatible(verbose=False)


@dataclass(frozen=True)
class Offload:
    """What is kept outside the GPU: optimizer states and their step, and stage 3's partitions of the weights.

    `nvme_path` is a folder on a fast local disk, for weights that go to "nvme". Optimizer states do not go there:
    DeepSpeed does not put into its checkpoints, nor take out of them, what it has moved to a disk.
    """

    optimizer: Literal["none", "cpu"] = "none"
    weights: Literal["none", "cpu", "nvme"] = "none"
    nvme_path: str | None = None


def zero_config(
    stage: int,
    param_persistence_threshold: int = 10_000,
    max_live_parameters: int = 30_000_000,
    offload: Offload = Offload(),
) -> dict[str, Any]:
    """The configuration of a ZeRO stage: 0 replicates everything, 1 splits optimizer states, 2 gradients too,
    3 weights too.

    The two numbers, in elements, are stage 3's: tensors below the threshold stay whole on every rank, and no
    more than so many elements of gathered weights are kept for reuse. Their defaults are those of the
    published runs.
    """
    zero: dict[str, Any] = {"stage": stage}
    if stage >= 1:
        zero["reduce_bucket_size"] = 50_000_000
        zero["contiguous_gradients"] = True
    if stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": param_persistence_threshold,
            "stage3_max_live_parameters": max_live_parameters,
            "stage3_prefetch_bucket_size": 30_000_000,
            "stage3_gather_16bit_weights_on_model_save": True,
            "memory_efficient_linear": False,
        }
    for name, device in (("offload_optimizer", offload.optimizer), ("offload_param", offload.weights)):
        if device != "none":
            zero[name] = {"device": device, "pin_memory": True}
            if device == "nvme":
                zero[name]["nvme_path"] = offload.nvme_path
    return {
        "zero_optimization": zero,
        "train_batch_size": AUTO,
        "train_micro_batch_size_per_gpu": AUTO,
        "gradient_accumulation_steps": AUTO,
        "gradient_clipping": AUTO,
        "bf16": {"enabled": AUTO},
        "fp16": {"enabled": AUTO, "loss_scale_window": 100},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW has a fused step on CPUs, and needs no compiler
        "steps_per_print": 10**9,  # the Trainer reports
    }


def config_of_flags(flags: Any) -> dict[str, Any]:
    """The configuration that the flags of `ZeroArguments` make."""
    return zero_config(
        flags.zero_stage,
        flags.stage3_param_persistence_threshold,
        flags.stage3_max_live_parameters,
        Offload(flags.offload_optimizer, flags.offload_param, flags.nvme_path),
    )


def gather_by_layer(model: "PreTrainedModel") -> None:
    """Make layers of encoder and decoder (what transformers never splits) the units that ZeRO-3 gathers."""
    from deepspeed.utils import set_z3_leaf_modules  # here: importing it chooses the device

    for part in (model.model.vision_tower, model.model.language_model):
        layers = {
            type(module) for module in part.modules() if type(module).__name__ in part._no_split_modules
        }
        set_z3_leaf_modules(part, list(layers))


def place_frozen(model: "nn.Module", processes: int) -> None:
    """Split the frozen weights of a ZeRO-3 engine's model over every `processes` neighbours instead of all; all call.

    1 keeps them whole. What learns stays split over all, and is put together once a step instead of once a pass.
    DeepSpeed gathers each parameter from the group that it names (`ds_process_group`).
    """
    import torch.distributed as dist

    group, _ = dist.new_subgroups(processes)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.ds_persist = True  # until the optimizer's step
            continue
        parameter.all_gather()
        parameter.ds_process_group = group
        parameter.ds_zero_partition_rank = dist.get_rank(group)
        parameter.ds_zero_partition_world_size = processes
        parameter.ds_tensor = None  # so that the part is made anew
        parameter.partition()


def share_nvme_store() -> None:
    """Have DeepSpeed open its folder of offloaded weights once in this process, and not for every block.

    Encoder, decoder, projector and engine each make such a store, which begins by emptying the folder that they share:
    weights that went there before could not be read back.
    """
    from deepspeed.runtime.zero import partition_parameters  # here: importing it chooses the device

    make = partition_parameters.AsyncPartitionedParameterSwapper
    if hasattr(make, "__wrapped__"):  # done before
        return
    made: dict[Any, Any] = {}  # by the type of number

    @wraps(make)
    def shared(config: Any, dtype: Any) -> Any:
        if dtype not in made:
            made[dtype] = make(config, dtype)
        return made[dtype]

    partition_parameters.AsyncPartitionedParameterSwapper = shared
