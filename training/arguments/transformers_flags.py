"""Flags of transformers' `TrainingArguments` that training refuses, each with the reason or what to do instead.

All others work; docs/training.md lists them.
"""

from dataclasses import MISSING, fields
from typing import Any

from utils.commands import UsageError

_REASONS = {
    "the loss is computed within the model, at supervised tokens alone; leave it out": (
        "label_smoothing_factor"
    ),
    "such optimizers need whole gradients, which ZeRO does not keep; use LoRA": "optim_target_modules",
    "a run has a fixed number of conversations per step; helper.plan_memory shows what fits": (
        "auto_find_batch_size"
    ),
    "evaluation has the precision of training: --precision": "bf16_full_eval fp16_full_eval",
    "--torch_compile compiles with torch's own defaults; leave it out": (
        "torch_compile_backend torch_compile_mode"
    ),
    "--use_liger_kernel uses all kernels except the loss": "liger_kernel_config",
    "training has no KV cache, and generation always has one; leave it out": "use_cache",
    "evaluation in training computes losses only; eval.batch_generation evaluates answers": (
        "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics "
        "batch_eval_metrics label_names do_predict"
    ),
    "all nodes share the disk of --output_dir, and one of them writes": "save_on_each_node",
    "a checkpoint is always written at SIGTERM; leave it out": "enable_jit_checkpoint",
    "upload the checkpoint after training: python -m helper.export_checkpoint --push_to_hub": (
        "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision"
    ),
    "resuming is exact; --init_from starts a new run from a checkpoint's weights": "ignore_data_skip",
    "resuming restores all that it needs; leave it out": "restore_callback_states_from_checkpoint",
    "the order of the data follows --seed": "data_seed",
    "the order of batches must be reproducible, and workers end after each epoch; leave it out": (
        "accelerator_config dataloader_persistent_workers dataloader_multiprocessing_context "
        "dataloader_in_order"
    ),
    "--group_by_length measures the conversations itself": "length_column_name",
    "DeepSpeed distributes the training; see --zero_stage": (
        "parallelism_config ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers "
        "ddp_static_graph ddp_backend fsdp fsdp_config"
    ),
    "--stall_timeout says how long processes wait for each other": "ddp_timeout",
    "NaN losses are always found and reported; leave it out": "debug",
    "the peak memory is always in the log; leave it out": "skip_memory_metrics",
}
REFUSED = {flag: reason for reason, flags in _REASONS.items() for flag in flags.split()}
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
