"""The flags of a run: the published recipe as defaults, what transformers' `TrainingArguments` lack, and which of
theirs are refused (`REFUSED`, each with the reason or what to do instead); all others work (docs/training.md).
"""

import os
from dataclasses import MISSING, dataclass, field, fields
from shutil import which
from typing import TYPE_CHECKING, Any, Literal

from training.sharding import ZeroArguments, flag
from utils.commands import UsageError

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments as Others
else:
    Others = object  # transformers is imported once the flags are known


def _loader_workers() -> int:
    """The scripts' 4 where the machine has the cores: with none, training waits while it decodes each batch.

    A core is left to each training process, so small machines have fewer, and two processes on two cores none.
    """
    from utils.distributed import cores, local_world_size

    return max(0, min(4, cores() // local_world_size() - 1))


@dataclass
class RunArguments(ZeroArguments, Others):
    """How to train: the published recipe as defaults of transformers' `TrainingArguments`, of which
    `training.arguments.parser` makes this a part, and the 2023 flags that those lack.
    """

    if TYPE_CHECKING:  # theirs, and settled below
        use_cpu: bool = False
        bf16: bool = False
        fp16: bool = False
        deepspeed: Any = None
        activation_checkpointing: bool | None = None
        metric_for_best_model: str | None = None
        use_liger_kernel: bool = False

    output_dir: str = flag("./output", "Folder for checkpoint-N, best and final.")
    overwrite_output_dir: bool = flag(
        False, "If output_dir holds an earlier run, delete its checkpoints, best and final, and train there."
    )
    per_device_train_batch_size: int = flag(
        2, "Conversations (with --packing, rows) per device and micro-batch."
    )
    per_device_eval_batch_size: int = flag(
        2, "Conversations (with --packing, rows) per device in evaluation."
    )
    learning_rate: float = flag(1e-3, "Peak learning rate.")
    learning_rate_pretraining_components: float = flag(
        0.0, "Learning rate of the embedding; 0: --learning_rate."
    )
    decoder_learning_rate: float = flag(
        0.0, "Learning rate of the decoder under --train decoder; 0: that of the embedding."
    )
    encoder_learning_rate: float = flag(
        0.0, "Learning rate of the encoder under --train encoder; 0: that of the embedding."
    )
    lora_learning_rate: float = flag(0.0, "Learning rate of the adapters; 0: --learning_rate.")
    image_gate_learning_rate: float = flag(0.03, "Peak learning rate of the factors of --image_gate.")
    num_train_epochs: float = flag(6.0, "Passes over the data.")
    lr_scheduler_type: str = flag("cosine", "Shape of the learning rate over time.")
    num_warmup_steps: float = flag(0.0, "Warm-up: steps if above 1, else a share of all steps.")
    adam_beta2: float = flag(0.95, "AdamW's second beta.")
    seed: int = flag(1234, "Seed of everything.")
    group_by_length: bool = flag(
        False,
        "Batches of conversations of similar length; short for --train_sampling_strategy group_by_length.",
    )
    dataloader_num_workers: int = field(
        default_factory=_loader_workers,
        metadata={
            "help": "Worker processes that load data for each training process; 0: the training process loads it itself"
            " (default: 4, or fewer on a machine with few cores)."
        },
    )
    gradient_checkpointing: bool = flag(False, "Recompute activations in the backward pass to save memory.")
    torch_compile: bool = flag(
        False,
        "Compile norms and MLPs of the decoder's layers, under ZeRO 0 to 2; on a CPU it takes a C++ compiler.",
    )
    precision: Literal["auto", "fp16", "bf16", "fp32"] = flag(
        "auto", "Number type; auto: bf16 if the GPU supports it, else fp16; fp32 on a CPU."
    )
    peak_tflops: float = flag(
        0.0,
        "Peak speed of one device in TFLOP/s at the run's precision, for the MFU in the log; 0: looked up by the"
        " device's name.",
    )
    report_to: list[str] = flag(
        ["none"],
        "Where to report metrics: tensorboard, wandb, others that transformers supports; several, or none.",
    )
    enable_tensorboard: bool = flag(False, "Write TensorBoard files; short for --report_to tensorboard.")
    checkpoint_form: Literal["full", "trained"] = flag(
        "full",
        "Form of best and final: all weights (full), or the trained ones with references to the base models"
        " (trained).",
    )
    epoch_checkpoint_form: Literal["full", "trained"] = flag(
        "trained", "Form of the weights in checkpoint-N; values as for --checkpoint_form."
    )
    max_failed_saves: int = flag(
        2, "Checkpoints in a row that may fail to be written (full disk, ...) before training stops."
    )
    save_in_background: bool = flag(
        False,
        "Write checkpoint-N while training goes on, from a copy in main memory, which holds its weights, the trained"
        " ones once more, and the optimizer's states.",
    )
    max_skipped_steps: int = flag(
        0, "Steps with a NaN or infinite loss that may be skipped before training stops."
    )
    stall_timeout: float = flag(
        900.0,
        "Seconds without progress after which the run ends and reports where each process was; 0: never.",
    )
    eval_strategy: str = flag("epoch", "When to evaluate: no, steps or epoch.")
    eval_on_start: bool = flag(True, "Evaluate before the first step.")
    eval_generate: int = flag(
        0,
        "At each evaluation generate the answers to this many held-out questions, and report the share that equals the"
        " reference; 0: none. With it, --metric_for_best_model accuracy chooses best.",
    )
    save_strategy: str = flag("epoch", "When to write checkpoint-N: no, steps, epoch or best.")
    logging_steps: float = flag(10, "Steps between two log lines.")
    logging_first_step: bool = flag(True, "Log the first step too.")
    logging_nan_inf_filter: bool = flag(False, "Leave NaN losses out of the logged averages.")
    log_level_replica: str = flag(
        "error", "Level of transformers' messages from processes other than the first."
    )
    remove_unused_columns: bool = flag(False, "Has no effect: the collator decides what the model gets.")

    def __post_init__(self) -> None:
        import torch

        from training.checkpointing.folders import NOT_RESUMED
        from utils.plugins import found

        refuse_what_is_not_offered(self)
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self._settle_precision()
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.train_sampling_strategy == "batch_rebalance":
            raise UsageError(
                "--train_sampling_strategy batch_rebalance is not supported: use --packing, which fills every row"
            )
        for name in ("max_skipped_steps", "stall_timeout", "eval_generate"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name):g}: give 0 or more")
        if self.overwrite_output_dir and self.resume_from_checkpoint not in NOT_RESUMED:
            raise UsageError(
                f"--overwrite_output_dir deletes the run that --resume_from_checkpoint {self.resume_from_checkpoint}"
                " resumes: give one of the two"
            )
        if self.num_warmup_steps and self.warmup_steps:
            raise UsageError("--num_warmup_steps and --warmup_steps: give one of the two")
        if self.peak_tflops < 0:
            raise UsageError(f"--peak_tflops {self.peak_tflops}: give a positive number, or 0")
        if self.enable_tensorboard:
            given = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or [])
            self.report_to = [name for name in given if name not in ("none", "tensorboard")] + ["tensorboard"]
        if check_reporters := found("training.metrics.trackers.check_reporters"):
            check_reporters(self.report_to)
        if self.eval_strategy == "no":
            self.eval_on_start = False
        elif self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        by_accuracy = str(self.metric_for_best_model).removeprefix("eval_") == "accuracy"
        if by_accuracy and not self.eval_generate:
            raise UsageError("--metric_for_best_model accuracy needs answers: add --eval_generate 200, say")
        if self.eval_generate and self.eval_strategy == "no":
            raise UsageError("--eval_generate answers at evaluations: give --eval_strategy steps or epoch")
        self.deepspeed = self.deepspeed_settings(self.deepspeed)
        if hasattr(self, "activation_checkpointing") and self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing  # newer transformers' name for it
        if self.torch_compile and self.zero_stage == 3:
            raise UsageError(
                "--torch_compile needs --zero_stage 0, 1 or 2: ZeRO-3 gathers weights within what is compiled"
            )
        if self.torch_compile and self.use_liger_kernel:
            raise UsageError(
                "--torch_compile and --use_liger_kernel fuse the same operations: give one of the two"
            )
        if self.torch_compile and self.use_cpu and not which(os.environ.get("CXX", "g++")):
            raise UsageError(
                "--torch_compile needs a C++ compiler on a CPU: install g++, or name yours in CXX"
            )
        compiled, self.torch_compile = self.torch_compile, False  # accelerate would compile the whole model
        super().__post_init__()
        self.torch_compile = compiled

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Warm-up in steps; the 2023 flag counts steps above 1 and is a share of the run up to 1."""
        if 0 < self.num_warmup_steps <= 1:
            return int(self.num_warmup_steps * num_training_steps)
        return int(self.num_warmup_steps) or super().get_warmup_steps(num_training_steps)

    @property
    def dtype(self) -> "torch.dtype":
        """The type in which weights are held and multiplied."""
        import torch

        return torch.float16 if self.fp16 else torch.bfloat16 if self.bf16 else torch.float32

    def _settle_precision(self) -> None:
        if self.precision == "auto" and not (self.bf16 or self.fp16 or self.use_cpu):
            import torch

            self.bf16 = torch.cuda.is_bf16_supported()
            self.fp16 = not self.bf16
        elif self.precision != "auto":
            self.bf16, self.fp16 = self.precision == "bf16", self.precision == "fp16"
        if self.fp16 and self.use_cpu:
            raise UsageError("fp16 needs a GPU: use --precision fp32 or bf16 on a CPU")


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
"""Flag of transformers: why it is not offered."""


def refuse_what_is_not_offered(arguments: Any) -> None:
    """Raises `UsageError` that names a flag of `REFUSED` which has another value than transformers' default."""
    from transformers import TrainingArguments  # takes seconds to import

    for each in fields(TrainingArguments):
        if each.name not in REFUSED:
            continue
        default = each.default if each.default_factory is MISSING else each.default_factory()
        given = getattr(arguments, each.name)
        if given != default and (given or default):  # nothing has several forms: None, "", an empty list
            raise UsageError(f"--{each.name} is not supported: {REFUSED[each.name]}")
