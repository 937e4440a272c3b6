"""Flags of transformers' `TrainingArguments` that training refuses, each with the reason or what to do instead.

All others work; docs/training.md lists them.
"""

from dataclasses import MISSING, fields
from typing import Any

from utils.commands import UsageError

_DEEPSPEED = "DeepSpeed distributes the training; see --zero_stage"
_COMPILED = "--torch_compile compiles with torch's own defaults; leave it out"
_HUB = "upload the checkpoint after training: python -m helper.export_checkpoint --push_to_hub"
_LOSSES = "evaluation in training computes losses only; eval.batch_generation evaluates answers"
_LOADER = "the order of batches must be reproducible, and workers end after each epoch; leave it out"
_CALLBACKS = "resuming restores all that it needs; leave it out"

REFUSED = {
    "label_smoothing_factor": "the loss is computed within the model, at supervised tokens alone; leave it out",
    "optim_target_modules": "such optimizers need whole gradients, which ZeRO does not keep; use LoRA",
    "auto_find_batch_size": (
        "a run has a fixed number of conversations per step; helper.plan_memory shows what fits"
    ),
    "bf16_full_eval": "evaluation has the precision of training: --precision",
    "fp16_full_eval": "evaluation has the precision of training: --precision",
    "torch_compile_backend": _COMPILED,
    "torch_compile_mode": _COMPILED,
    "liger_kernel_config": "--use_liger_kernel uses all kernels except the loss",
    "use_cache": "training has no KV cache, and generation always has one; leave it out",
    "eval_do_concat_batches": _LOSSES,
    "eval_use_gather_object": _LOSSES,
    "eval_accumulation_steps": _LOSSES,
    "include_for_metrics": _LOSSES,
    "batch_eval_metrics": _LOSSES,
    "label_names": _LOSSES,
    "do_predict": _LOSSES,
    "save_on_each_node": "all nodes share the disk of --output_dir, and one of them writes",
    "enable_jit_checkpoint": "a checkpoint is always written at SIGTERM; leave it out",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "ignore_data_skip": "resuming is exact; --init_from starts a new run from a checkpoint's weights",
    "restore_callback_states_from_checkpoint": _CALLBACKS,
    "data_seed": "the order of the data follows --seed",
    "accelerator_config": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_in_order": _LOADER,
    "length_column_name": "--group_by_length measures the conversations itself",
    "parallelism_config": _DEEPSPEED,
    "ddp_find_unused_parameters": _DEEPSPEED,
    "ddp_bucket_cap_mb": _DEEPSPEED,
    "ddp_broadcast_buffers": _DEEPSPEED,
    "ddp_static_graph": _DEEPSPEED,
    "ddp_backend": _DEEPSPEED,
    "ddp_timeout": "--stall_timeout says how long processes wait for each other",
    "fsdp": _DEEPSPEED,
    "fsdp_config": _DEEPSPEED,
    "debug": "NaN losses are always found and reported; leave it out",
    "skip_memory_metrics": "the peak memory is always in the log; leave it out",
}
"""Flag: why it is not offered."""


def refuse_what_is_not_offered(arguments: Any) -> None:
    """Raises `UsageError` that names a flag of `REFUSED` which has another value than transformers' default."""
    from transformers import TrainingArguments  # takes seconds to import

    for field in fields(TrainingArguments):
        if field.name not in REFUSED:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        given = getattr(arguments, field.name)
        if given != default and (given or default):  # nothing has several forms: None, "", an empty list
            raise UsageError(f"--{field.name} is not supported: {REFUSED[field.name]}")
