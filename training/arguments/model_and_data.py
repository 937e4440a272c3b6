"""The flags of model and data: those of 2023 with their defaults, and those that came since.

What takes seconds to import is imported where a flag's value needs it: `--help` needs none of it.
"""

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training.sharding import flag
from utils.commands import UsageError

if TYPE_CHECKING:
    from utils.model.lora import LoraSettings
    from utils.model.quantised import FrozenBits


@dataclass(frozen=True)
class ModelArguments:
    """Which decoder and encoder to join, and how."""

    lm_model_name_or_path: str = field(metadata={"help": "Decoder: a local folder or a hub name."})
    vision_model_name_or_path: str = flag(
        "openai/clip-vit-large-patch14", "Visual encoder: a local folder or a hub name."
    )
    vis_proj: Literal["baseline", "linear", "vit", "perceiver"] = flag(
        "baseline", "Projection from encoder to decoder; baseline and linear are the same."
    )
    enable_mmca_attention: bool = flag(
        False,
        "Multi-modal causal attention as published in 2023: --attention mmca, --image_layers full, --image_gate none,"
        " --image_summary none.",
    )
    attention: Literal["mmca", "causal", "cross"] | None = flag(
        None, "Attention of the decoder; causal unless this or --enable_mmca_attention says otherwise."
    )
    image_layers: Literal["full", "no_mlp", "none"] | None = flag(
        None,
        "What image tokens go through in the decoder's layers under --attention mmca or cross: full, attention and MLP"
        " as text does; no_mlp, attention alone; none, nothing, so that layers read them as they are projected. Unless"
        " said: none under --attention mmca, full otherwise.",
    )
    image_gate: Literal["none", "head"] | None = flag(
        None,
        "Factor on what text reads of images, under --attention mmca: head, one learned for each layer and head, which"
        " begins at 0; none, always 1. Unless said: head under --attention mmca.",
    )
    image_summary: Literal["none", "mean"] | None = flag(
        None,
        "Text token behind each image: mean, one that begins as the mean of the image's features and is read as text,"
        " so that it knows the image's number; none, no such token. Unless said: mean under --attention mmca, none"
        " otherwise.",
    )
    lang_lora_dim: int = flag(0, "Rank of LoRA in the decoder; 0 for none.")
    lang_lora_module_name: str = flag(
        "model.layers.", "LoRA goes into decoder modules whose name holds this."
    )
    vis_lora_dim: int = flag(0, "Rank of LoRA in the encoder; 0 for none.")
    vis_lora_module_name: str = flag(
        "encoder.layers.", "LoRA goes into encoder modules whose name holds this."
    )
    lora_alpha: float | None = flag(
        None,
        "Scale of LoRA: the adapters' output is multiplied by this over their rank. Without it, by 1 at any rank;"
        " 1 gives the scale of the 2023 code.",
    )
    only_optimize_lora: bool = flag(
        False,
        "Changes nothing, as in the 2023 code: embedding and projection are trained beside the adapters. --train says"
        " what learns.",
    )
    train: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What learns: any of embedding, projector, gate, decoder, encoder, lora; decoder:top-4 is the"
            " decoder from its last 4 layers on, norm and head included (default: embedding and projector, and gate and"
            " lora where the model has them)."
        },
    )
    frozen_bits: list[int] = flag(
        [0],
        "Bits of the frozen decoder's matrices, 4 or 8, quantised by bitsandbytes, at ZeRO 0 to 2; 0: as --precision"
        " says. A second number quantises the frozen encoder's too: 4 8. Checkpoints then hold what was trained, in all"
        " forms.",
    )
    init_from: str | None = flag(
        None,
        "Checkpoint to start from, a folder or a hub name: takes what it has learnt. Steps and optimizer start anew;"
        " to continue a run, use --resume_from_checkpoint.",
    )
    plugin: list[str] = field(
        default_factory=list,
        metadata={"help": "Modules of your own (my_module.py) that register datasets or visual encoders."},
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
        self._check_train()
        self._check_frozen_bits()

    def require_plausible_names(self) -> None:
        """Raises `UsageError` for a model that is neither a model's folder here nor a name that the hub may have."""
        for name in ("lm_model_name_or_path", "vision_model_name_or_path"):
            _check_model(name, getattr(self, name))

    def _check_train(self) -> None:
        if not self.train:
            return
        from utils.model.lora import check_parts  # seconds to import

        try:
            check_parts(self.train)
        except ValueError as error:
            raise UsageError(f"--train: {error}") from error
        if "gate" in self.train and self.gate == "none":
            raise UsageError("--train gate: the model has none; add --image_gate head")
        if "lora" in self.train and not (self.lang_lora_dim or self.vis_lora_dim):
            raise UsageError("--train lora: the model has no adapters; add --lang_lora_dim 64, say")

    def _check_frozen_bits(self) -> None:
        given = " ".join(map(str, self.frozen_bits))
        if len(self.frozen_bits) > 2 or set(self.frozen_bits) - {0, 4, 8}:
            raise UsageError(f"--frozen_bits {given}: give 4, 8 or 0 for the decoder, then for the encoder")
        for part, bits in zip(("decoder", "encoder"), self.frozen_bits, strict=False):
            if bits and any(each.partition(":")[0] == part for each in self.train):
                size = "lang" if part == "decoder" else "vis"
                raise UsageError(
                    f"--frozen_bits {given} quantises the {part}, so it cannot learn: leave it out of --train, or give"
                    f" it adapters in its place (--train lora, --{size}_lora_dim 64)"
                )

    def require_whole(self, zero_stage: int) -> None:
        """Raises `UsageError` where ZeRO would partition quantised weights."""
        if any(self.frozen_bits) and zero_stage == 3:
            given = " ".join(map(str, self.frozen_bits))
            raise UsageError(
                f"--frozen_bits {given} needs --zero_stage 0, 1 or 2: ZeRO-3 cannot partition quantised weights"
            )

    @property
    def quantised(self) -> "FrozenBits":
        """The bits of decoder and encoder."""
        from utils.model.quantised import FrozenBits  # takes seconds to import

        return FrozenBits(*self.frozen_bits)

    @property
    def lora(self) -> "LoraSettings | None":
        """The adapters that the flags ask for."""
        from utils.model.lora import LoraSettings  # takes seconds to import

        settings = LoraSettings(
            lang_dim=self.lang_lora_dim,
            lang_module_name=self.lang_lora_module_name,
            vis_dim=self.vis_lora_dim,
            vis_module_name=self.vis_lora_module_name,
            alpha=self.lora_alpha,
        )
        return settings or None

    @property
    def projector(self) -> str:
        """The projector's name in today's words."""
        return "linear" if self.vis_proj == "baseline" else self.vis_proj

    @property
    def attention_name(self) -> str:
        """The attention that the flags ask for together; as in 2023, plain causal where none does."""
        return self.attention or ("mmca" if self.enable_mmca_attention else "causal")

    @property
    def _keeps_images_out(self) -> bool:
        """Whether images stay out of the decoder's layers unless a flag says otherwise: not so in 2023."""
        return self.attention_name == "mmca" and not self.enable_mmca_attention

    @property
    def images_go_through(self) -> str:
        """The layers' parts that image tokens go through: full, no_mlp or none."""
        return self.image_layers or ("none" if self._keeps_images_out else "full")

    @property
    def gate(self) -> str:
        """The factor on what text reads of images: none or head."""
        return self.image_gate or ("head" if self._keeps_images_out else "none")

    @property
    def summary(self) -> str:
        """The text token behind each image: none or mean."""
        return self.image_summary or ("mean" if self._keeps_images_out else "none")


@dataclass(frozen=True)
class DataArguments:
    """Which conversations to train on."""

    data_path: str = flag("./data/", "Folder of the datasets; your own files may be elsewhere.")
    data_cache_path: str | None = flag(
        None, "Folder for converted data files (default: $VISUALCHAT_CACHE, or ~/.cache/visualchat)."
    )
    cache_vision_features: bool = flag(
        False,
        "Compute the frozen encoder's features of each image once, before training, and keep them in"
        " --data_cache_path; the disk space needed is reported first.",
    )
    data_debug_path: str | None = flag(None, "Folder to write a page with 10 samples to, images and text.")
    data_train_split_ratio: float = flag(0.9, "Share of the data to train on; the rest is for evaluation.")
    dataset_names: list[str] = flag(
        ["minigpt4"],
        "Published datasets by name, your own data by path: .json, .jsonl, .parquet or a folder.",
    )
    dataset_samples: list[str] = flag(
        ["all"],
        "Records to use of each dataset, a number or all: one value for all datasets, or one for each.",
    )
    dataset_concatenate_samples: list[int] = flag(
        [1], "Concatenate up to this many records into one conversation: one value, or one for each dataset."
    )
    dataset_weights: list[float] = flag(
        [1.0],
        "How often a record comes in an epoch (2: twice; 0.5: every other epoch): one value, or one for"
        " each dataset.",
    )
    image_folder: str | None = flag(
        None, "Folder that image paths in your own data start from (default: the folder of each file)."
    )
    max_num_image_per_sample: int = flag(8, "Maximum number of images in a conversation.")
    tiles: int = flag(
        1,
        "Show a large image whole and in up to this many tiles at the encoder's size, each with tokens of its own; 1:"
        " whole only.",
    )
    max_seq_len: int = flag(
        4096,
        "Maximum length in tokens, image tokens included: of a conversation or, with --packing, of a row.",
    )
    packing: bool = flag(
        False,
        "Pack whole conversations into rows; they do not attend to each other. Batch sizes then count rows.",
    )
    max_images_per_row: int = flag(
        0,
        "Maximum number of images in a packed row, tiles included; 0: those of two conversations with"
        " --max_num_image_per_sample.",
    )
    max_bad_fraction: float = flag(
        0.001,
        "Stop if more than this share of all records is bad. Otherwise bad records are left out and listed in"
        " {output_dir}/bad_samples.jsonl. One bad record is always allowed, unless this is 0.",
    )
    strict: bool = flag(False, "Stop at the first bad record.")

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
        for name in ("dataset_samples", "dataset_concatenate_samples", "dataset_weights"):
            given = len(getattr(self, name))
            if given not in (1, len(self.dataset_names)):
                raise UsageError(
                    f"--{name} has {given} values for {len(self.dataset_names)} datasets:"
                    " give one, or one for each"
                )
        for value in self.dataset_samples:
            if value != "all" and not (value.isdigit() and int(value) > 0):
                raise UsageError(f"--dataset_samples {value}: give a positive number, or all")
        for name in ("max_num_image_per_sample", "max_seq_len", "tiles"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: give a positive number")
        if self.max_images_per_row and not self.packing:
            raise UsageError("--max_images_per_row is for packed rows: add --packing")
        most = self.max_num_image_per_sample * views_per_image(self.tiles)
        if 0 != self.max_images_per_row < most:
            tiles = f", each with {self.tiles} tiles: {most}" if self.tiles > 1 else ""
            raise UsageError(
                f"--max_images_per_row {self.max_images_per_row} is less than one conversation may have: give at"
                f" least --max_num_image_per_sample {self.max_num_image_per_sample}{tiles}"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise UsageError(f"--max_bad_fraction {self.max_bad_fraction}: give a share from 0 to 1")
        if min(self.dataset_concatenate_samples) < 1:
            raise UsageError("--dataset_concatenate_samples: give positive numbers")
        if not all(0 < weight < math.inf for weight in self.dataset_weights):
            raise UsageError("--dataset_weights: give positive numbers")

    @property
    def samples(self) -> list[int | str]:
        """`dataset_samples` with its numbers as numbers."""
        return [value if value == "all" else int(value) for value in self.dataset_samples]


def views_per_image(tiles: int) -> int:
    """What the encoder is shown of an image at most: the whole, and its tiles."""
    return 1 + tiles if tiles > 1 else 1


def images_per_row(flags: Any) -> int:
    """Images in a row of a batch at most, tiles included, by the flags of `DataArguments`."""
    most = flags.max_num_image_per_sample * views_per_image(flags.tiles)
    return flags.max_images_per_row or 2 * most if flags.packing else most


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
