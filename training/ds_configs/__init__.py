"""The DeepSpeed configurations of ZeRO stages 0 to 3: one builder, since they differ in a few lines.

`--deepspeed_config FILE` replaces them by a JSON file of one's own (`user_config`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

AUTO = "auto"  # filled in from the training arguments by transformers' DeepSpeed integration


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
