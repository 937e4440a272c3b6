"""The flags of training: those of 2023 with their defaults, and those that came since.

What takes seconds to import is imported where a flag's value needs it: `--help` needs none of it.
`training.parser` adds all of transformers' `TrainingArguments`.
"""

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from training.arguments_zero import ZeroArguments
from training.transformers_flags import refuse_what_is_not_offered
from training.usage import UsageError
from utils.hub import CONFIG, require_model

if TYPE_CHECKING:
    import torch


def _flag(default: object, text: str) -> object:
    return field(default=default, metadata={"help": text})


def _loader_workers() -> int:
    """The scripts' 4 where the machine has the cores: with none, training waits while it decodes each batch.

    A core is left to each training process, so small machines have fewer, and two processes on two cores none.
    """
    from utils.distributed import cores, local_world_size

    return max(0, min(4, cores() // local_world_size() - 1))


@dataclass(frozen=True)
class ModelArguments:
    """Which decoder and encoder to join, and how."""

    lm_model_name_or_path: str = field(metadata={"help": "Decoder: a local folder or a hub name."})
    vision_model_name_or_path: str = _flag(
        "openai/clip-vit-large-patch14", "Visual encoder: a local folder or a hub name."
    )
    vis_proj: Literal["baseline", "linear", "vit", "perceiver"] = _flag(
        "baseline", "Projection from encoder to decoder; baseline and linear are the same."
    )
    enable_mmca_attention: bool = _flag(False, "Multi-modal causal attention; short for --attention mmca.")
    attention: Literal["mmca", "causal", "cross"] | None = _flag(
        None, "Attention of the decoder; causal unless this or --enable_mmca_attention says otherwise."
    )
    image_layers: Literal["full", "no_mlp", "none"] | None = _flag(
        None,
        "What image tokens go through in the decoder's layers under --attention mmca or cross: full, attention and MLP"
        " as text does; no_mlp, attention alone; none, nothing, so that layers read them as they are projected."
        " full unless said.",
    )
    image_gate: Literal["none", "head"] | None = _flag(
        None,
        "Factor on what text reads of images, under --attention mmca: head, one learned for each layer and head, which"
        " begins at 0; none, always 1. none unless said.",
    )
    lang_lora_dim: int = _flag(0, "Rank of LoRA in the decoder; 0 for none.")
    lang_lora_module_name: str = _flag(
        "model.layers.", "LoRA goes into decoder modules whose name holds this."
    )
    vis_lora_dim: int = _flag(0, "Rank of LoRA in the encoder; 0 for none.")
    vis_lora_module_name: str = _flag(
        "encoder.layers.", "LoRA goes into encoder modules whose name holds this."
    )
    lora_alpha: float | None = _flag(
        None,
        "Scale of LoRA: the adapters' output is multiplied by this over their rank. Without it, by 1 at any rank;"
        " 1 gives the scale of the 2023 code.",
    )
    only_optimize_lora: bool = _flag(
        False,
        "Changes nothing, as in the 2023 code: decoder and encoder train their adapters alone in any case, and"
        " embedding and projection are trained too.",
    )
    init_from: str | None = _flag(
        None,
        "Checkpoint to start from: takes its embedding, projection and adapters. Steps and optimizer start anew;"
        " to continue a run, use --resume_from_checkpoint.",
    )

    def __post_init__(self) -> None:
        if self.enable_mmca_attention and self.attention not in (None, "mmca"):
            raise UsageError(
                f"--enable_mmca_attention contradicts --attention {self.attention}: give one of the two"
            )
        if self.attention_name == "causal" and self.images_go_through != "full":
            raise UsageError(
                f"--image_layers {self.image_layers} needs --attention mmca or cross; under causal attention images"
                " are read as text is"
            )
        if self.attention_name != "mmca" and self.gate != "none":
            raise UsageError(
                f"--image_gate {self.gate} needs --attention mmca; under {self.attention_name} attention images have no"
                " softmax of their own"
            )
        if self.only_optimize_lora and not (self.lang_lora_dim or self.vis_lora_dim):
            raise UsageError("--only_optimize_lora has no adapters to train: add --lang_lora_dim 64, say")
        if self.lora_alpha is not None and self.lora_alpha <= 0:
            raise UsageError(f"--lora_alpha {self.lora_alpha}: give a positive number, or leave it out")
        for flag in ("lm_model_name_or_path", "vision_model_name_or_path"):
            _check_model(flag, getattr(self, flag))

    def look_up(self) -> None:
        """Find both models, in their folders or on the hub; `UsageError` that names the flag where one is not there."""
        from utils.model.open_clip_files import CONFIG as OPEN_CLIP
        from utils.model.open_clip_files import HUB, LOCAL_FOLDER, is_architecture

        require_model("--lm_model_name_or_path", self.lm_model_name_or_path)
        if not is_architecture(self.vision_model_name_or_path):
            vision = self.vision_model_name_or_path.removeprefix(LOCAL_FOLDER).removeprefix(HUB)
            require_model("--vision_model_name_or_path", vision, (CONFIG, OPEN_CLIP))

    @property
    def projector(self) -> str:
        """The projector's name in today's words."""
        return "linear" if self.vis_proj == "baseline" else self.vis_proj

    @property
    def attention_name(self) -> str:
        """The attention that the flags ask for together; as in 2023, plain causal where none does."""
        return self.attention or ("mmca" if self.enable_mmca_attention else "causal")

    @property
    def images_go_through(self) -> str:
        """The layers' parts that image tokens go through: full, no_mlp or none."""
        return self.image_layers or "full"

    @property
    def gate(self) -> str:
        """The factor on what text reads of images: none or head."""
        return self.image_gate or "none"


@dataclass(frozen=True)
class DataArguments:
    """Which conversations to train on."""

    data_path: str = _flag("./data/", "Folder of the datasets; your own files may be elsewhere.")
    data_cache_path: str | None = _flag(
        None, "Folder for converted data files (default: $VISUALCHAT_CACHE, or ~/.cache/visualchat)."
    )
    cache_vision_features: bool = _flag(
        False,
        "Compute the frozen encoder's features of each image once, before training, and keep them in"
        " --data_cache_path; the disk space needed is reported first.",
    )
    data_debug_path: str | None = _flag(None, "Folder to write a page with 10 samples to, images and text.")
    data_train_split_ratio: float = _flag(0.9, "Share of the data to train on; the rest is for evaluation.")
    dataset_names: list[str] = field(
        default_factory=lambda: ["minigpt4"],
        metadata={
            "help": "Published datasets by name, your own data by path: .json, .jsonl, .parquet or a folder."
        },
    )
    dataset_samples: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={
            "help": "Records to use of each dataset, a number or all: one value for all datasets, or one for each."
        },
    )
    dataset_concatenate_samples: list[int] = field(
        default_factory=lambda: [1],
        metadata={
            "help": "Concatenate up to this many records into one conversation: one value, or one for each dataset."
        },
    )
    dataset_weights: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={
            "help": "How often a record comes in an epoch (2: twice; 0.5: every other epoch): one value, or one for"
            " each dataset."
        },
    )
    image_folder: str | None = _flag(
        None, "Folder that image paths in your own data start from (default: the folder of each file)."
    )
    max_num_image_per_sample: int = _flag(8, "Maximum number of images in a conversation.")
    max_seq_len: int = _flag(
        4096,
        "Maximum length in tokens, image tokens included: of a conversation or, with --packing, of a row.",
    )
    packing: bool = _flag(
        False,
        "Pack whole conversations into rows; they do not attend to each other. Batch sizes then count rows.",
    )
    max_images_per_row: int = _flag(
        0, "Maximum number of images in a packed row; 0: twice --max_num_image_per_sample."
    )
    max_bad_fraction: float = _flag(
        0.001,
        "Stop if more than this share of all records is bad. Otherwise bad records are left out and listed in"
        " {output_dir}/bad_samples.jsonl. One bad record is always allowed, unless this is 0.",
    )
    strict: bool = _flag(False, "Stop at the first bad record.")

    def __post_init__(self) -> None:
        from utils.data.registry import DATASETS  # seconds to import: plans of memory do without

        # Data of one's own may lie anywhere, and are looked for one by one.
        if any(name in DATASETS for name in self.dataset_names) and not Path(self.data_path).is_dir():
            raise UsageError(
                f"--data_path {self.data_path}: no such folder; give the folder that holds the datasets"
            )
        if not 0 < self.data_train_split_ratio <= 1:
            raise UsageError(
                f"--data_train_split_ratio {self.data_train_split_ratio}: give a share in (0, 1]"
            )
        for flag in ("dataset_samples", "dataset_concatenate_samples", "dataset_weights"):
            given = len(getattr(self, flag))
            if given not in (1, len(self.dataset_names)):
                raise UsageError(
                    f"--{flag} has {given} values for {len(self.dataset_names)} datasets:"
                    " give one, or one for each"
                )
        for value in self.dataset_samples:
            if value != "all" and not (value.isdigit() and int(value) > 0):
                raise UsageError(f"--dataset_samples {value}: give a positive number, or all")
        for flag in ("max_num_image_per_sample", "max_seq_len"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: give a positive number")
        if self.max_images_per_row and not self.packing:
            raise UsageError("--max_images_per_row is for packed rows: add --packing")
        if 0 != self.max_images_per_row < self.max_num_image_per_sample:
            raise UsageError(
                f"--max_images_per_row {self.max_images_per_row} is less than one conversation may have: give at"
                f" least --max_num_image_per_sample {self.max_num_image_per_sample}"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise UsageError(f"--max_bad_fraction {self.max_bad_fraction}: give a share from 0 to 1")
        if min(self.dataset_concatenate_samples) < 1:
            raise UsageError("--dataset_concatenate_samples: give positive numbers")
        if not all(0 < weight < math.inf for weight in self.dataset_weights):
            raise UsageError("--dataset_weights: give positive numbers")

    @property
    def image_budget(self) -> int:
        """Images in a packed row at most."""
        return self.max_images_per_row or 2 * self.max_num_image_per_sample

    @property
    def samples(self) -> list[int | str]:
        """`dataset_samples` with its numbers as numbers."""
        return [value if value == "all" else int(value) for value in self.dataset_samples]


@dataclass
class RunArguments(ZeroArguments):
    """How to train: the published recipe as defaults of transformers' `TrainingArguments`, of which
    `training.parser` makes this a part, and the 2023 flags that those lack.
    """

    output_dir: str | None = _flag("./output", "Folder for checkpoint-N, best and final.")
    overwrite_output_dir: bool = _flag(
        False, "If output_dir holds an earlier run, delete its checkpoints, best and final, and train there."
    )
    per_device_train_batch_size: int = _flag(
        2, "Conversations (with --packing, rows) per device and micro-batch."
    )
    per_device_eval_batch_size: int = _flag(
        2, "Conversations (with --packing, rows) per device in evaluation."
    )
    learning_rate: float = _flag(1e-3, "Peak learning rate.")
    learning_rate_pretraining_components: float = _flag(
        0.0, "Learning rate of the embedding; 0: --learning_rate."
    )
    image_gate_learning_rate: float = _flag(0.03, "Peak learning rate of the factors of --image_gate.")
    num_train_epochs: float = _flag(6.0, "Passes over the data.")
    lr_scheduler_type: str = _flag("cosine", "Shape of the learning rate over time.")
    num_warmup_steps: float = _flag(0.0, "Warm-up: steps if above 1, else a share of all steps.")
    adam_beta2: float = _flag(0.95, "AdamW's second beta.")
    seed: int = _flag(1234, "Seed of everything.")
    group_by_length: bool = _flag(
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
    gradient_checkpointing: bool = _flag(False, "Recompute activations in the backward pass to save memory.")
    precision: Literal["auto", "fp16", "bf16", "fp32"] = _flag(
        "auto", "Number type; auto: bf16 if the GPU supports it, else fp16; fp32 on a CPU."
    )
    peak_tflops: float = _flag(
        0.0,
        "Peak speed of one device in TFLOP/s at the run's precision, for the MFU in the log; 0: looked up by the"
        " device's name.",
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={
            "help": "Where to report metrics: tensorboard, wandb, others that transformers supports; several, or none."
        },
    )
    enable_tensorboard: bool = _flag(False, "Write TensorBoard files; short for --report_to tensorboard.")
    checkpoint_form: Literal["full", "trained"] = _flag(
        "full",
        "Form of best and final: all weights (full), or the trained ones with references to the base models"
        " (trained).",
    )
    epoch_checkpoint_form: Literal["full", "trained"] = _flag(
        "trained", "Form of the weights in checkpoint-N; values as for --checkpoint_form."
    )
    max_failed_saves: int = _flag(
        2, "Checkpoints in a row that may fail to be written (full disk, ...) before training stops."
    )
    max_skipped_steps: int = _flag(
        0, "Steps with a NaN or infinite loss that may be skipped before training stops."
    )
    stall_timeout: float = _flag(
        900.0,
        "Seconds without progress after which the run ends and reports where each process was; 0: never.",
    )
    eval_strategy: str = _flag("epoch", "When to evaluate: no, steps or epoch.")
    eval_on_start: bool = _flag(True, "Evaluate before the first step.")
    save_strategy: str = _flag("epoch", "When to write checkpoint-N: no, steps, epoch or best.")
    logging_steps: float = _flag(10, "Steps between two log lines.")
    logging_first_step: bool = _flag(True, "Log the first step too.")
    logging_nan_inf_filter: bool = _flag(False, "Leave NaN losses out of the logged averages.")
    log_level_replica: str = _flag(
        "error", "Level of transformers' messages from processes other than the first."
    )
    remove_unused_columns: bool = _flag(False, "Has no effect: the collator decides what the model gets.")

    def __post_init__(self) -> None:
        import torch

        from training.checkpoints import NOT_RESUMED
        from training.reporting import check_reporters

        refuse_what_is_not_offered(self)
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self._settle_precision()
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.train_sampling_strategy == "batch_rebalance":
            raise UsageError(
                "--train_sampling_strategy batch_rebalance is not supported: use --packing, which fills every row"
            )
        for flag in ("max_skipped_steps", "stall_timeout"):
            if getattr(self, flag) < 0:
                raise UsageError(f"--{flag} {getattr(self, flag):g}: give 0 or more")
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
        check_reporters(self.report_to)
        if self.eval_strategy == "no":
            self.eval_on_start = False
        elif self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        self.deepspeed = self.deepspeed_settings(self.deepspeed)
        if hasattr(self, "activation_checkpointing") and self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing  # newer transformers' name for it
        super().__post_init__()

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


def _check_model(flag: str, name: str) -> None:
    described_by = ("config.json",)
    if flag.startswith("vision"):
        described_by += ("open_clip_config.json",)
        name = name.removeprefix("local-dir:").removeprefix("hf-hub:")  # open_clip's ways to say what follows
    if os.path.isdir(name):
        if not any(Path(name, each).is_file() for each in described_by):
            raise UsageError(
                f"--{flag} {name}: no {' or '.join(described_by)} in this folder; give a model's folder"
            )
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise UsageError(
            f"--{flag} {name}: no such folder; give a model folder, or a hub name (meta-llama/Llama-2-7b-hf)"
        )
