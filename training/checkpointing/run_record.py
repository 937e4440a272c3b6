"""The settings of a run, as its checkpoints record them: which must stay the same on resuming, and which may change.

A flag that decides what the optimizer's state belongs to, or which conversations come at which step, must stay
(`FIXED`); one that only concerns a start, or where things are, is not recorded (`UNRECORDED`); any other may change,
is said, and takes effect.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.arguments import DataArguments, ModelArguments
from training.arguments.model_and_data import images_per_row
from training.arguments.parser import VisualChatTrainingArguments
from training.checkpointing.folders import RUN, ResumeError
from utils.atomic import atomic_write
from utils.data.spec import one_for_each
from utils.distributed import decided_by_main, get_logger
from utils.model.lora import PARTS, PUBLISHED

if TYPE_CHECKING:
    from utils.data import Mixture

logger = get_logger(__name__)

FIXED = {
    *("vis_proj", "attention", "image_layers", "image_gate", "image_summary", "frozen_bits", "train"),
    *("lang_lora_dim", "lang_lora_module_name", "vis_lora_dim", "vis_lora_module_name", "lora_alpha"),
    *("dataset_names", "dataset_samples", "dataset_concatenate_samples", "dataset_weights"),
    *(
        "data_train_split_ratio",
        "max_num_image_per_sample",
        "max_seq_len",
        "tiles",
        "packing",
        "max_images_per_row",
    ),
    *("seed", "train_sampling_strategy", "dataloader_drop_last", "optim", "optim_args", "deepspeed_config"),
}
"""Flags that must be what they were; beside these the models, the data, and what `Run` itself names."""

UNRECORDED = {
    # where things are, and who starts them
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "local_rank"),
    *("data_cache_path", "data_debug_path", "nvme_path"),
    # for the start of a run only
    *("init_from", "eval_on_start", "dry_run_worst_batch", "logging_first_step"),
    # compared in another form: `attention`, `train_sampling_strategy`, `report_to`, `gradient_checkpointing`, `Run`
    *("enable_mmca_attention", "group_by_length", "enable_tensorboard", "activation_checkpointing"),
    *("bf16", "fp16", "precision", "zero_stage", "deepspeed", "use_cpu"),
    # of 2023, and without effect
    "only_optimize_lora",
}
"""Flags that say nothing of the run itself."""

BEFORE = {
    "image_layers": "full",
    "image_gate": "none",
    "image_summary": "none",
    "lora_learning_rate": 0.0,
    "frozen_bits": [0, 0],
    "tiles": 1,
}
"""What runs did that do not record a flag, because there was none."""

_MADE_BY_FLAGS = {"lang_lora_dim", "vis_lora_dim", "image_gate"}
"""Flags that make parts which `--train` then names."""

_SCHEDULE = ("lr_scheduler_type", "lr_scheduler_kwargs", "learning_rate")
_ADAPTIVE = ("reduce_lr_on_plateau", "greedy")
"""Schedules whose rate follows from the losses so far: neither of these flags can change under them."""

_MODELS = ("lm_model_name_or_path", "vision_model_name_or_path")
_DIGESTED = 1 << 20  # bytes of a weight file's beginning, which holds the names and shapes of its tensors


@dataclass(frozen=True)
class Run:
    """What a run is, as far as its checkpoints depend on it; the last three are None where that was not recorded."""

    processes: int
    zero_stage: int
    precision: str
    global_batch: int  # conversations, or packed rows, an optimizer step
    flags: Mapping[str, Any] | None = None
    models: Mapping[str, str] | None = None  # flag: what the folder holds, or the hub name
    data: Mapping[str, str] | None = None  # dataset: what its annotation files hold
    conversations: int | None = field(default=None)

    @classmethod
    def of(cls, model: ModelArguments, data: DataArguments, training: VisualChatTrainingArguments) -> "Run":
        """The run that a command line asks for; its data are not read yet."""
        return cls(
            processes=training.world_size,
            zero_stage=training.hf_deepspeed_config.get_value("zero_optimization.stage", 0),
            precision=str(training.dtype).removeprefix("torch."),
            global_batch=training.train_batch_size
            * training.world_size
            * training.gradient_accumulation_steps,
            flags=_recorded(model, data, training),
            models=decided_by_main(lambda: {flag: _model_identity(getattr(model, flag)) for flag in _MODELS}),
        )

    def with_data(self, part: "Mixture") -> "Run":
        """The same with what it learns from; all processes call."""
        contents = decided_by_main(lambda: part.contents)
        return replace(self, data=contents, conversations=len(part))

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        atomic_write(folder / RUN, json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """The run that wrote the checkpoint in `folder`."""
        return cls(**json.loads((folder / RUN).read_text()))

    def check(self, folder: Path) -> "Run":
        """The run that wrote `folder`; `ResumeError` where this one cannot go on from it.

        The number of processes may differ, and flags outside of `FIXED`: these are said.
        """
        written = self.load(folder)
        if (written.zero_stage, written.precision) != (self.zero_stage, self.precision):
            raise ResumeError(
                f"{folder} was written with ZeRO {written.zero_stage} in {written.precision}, but this run uses ZeRO"
                f" {self.zero_stage} in {self.precision}: set --zero_stage and --precision as before"
            )
        if written.global_batch != self.global_batch:
            raise ResumeError(
                f"{folder} was written with {written.global_batch} conversations per step, but this run has"
                f" {self.global_batch}: choose --per_device_train_batch_size and --gradient_accumulation_steps"
                f" so that their product times {self.processes} processes is {written.global_batch}"
            )
        if self.flags is not None:
            self._check_flags(written, folder)
        return written

    def check_data(self, folder: Path) -> None:
        """`ResumeError` where the data are not those that the run in `folder` has learnt from so far."""
        written = self.load(folder)
        if written.data is None or self.data is None:
            return
        changed = [name for name, content in written.data.items() if self.data.get(name) != content]
        if changed:
            found = f"the annotation files of {', '.join(changed)} are not those of the run in {folder}"
        elif written.conversations != self.conversations:
            found = (
                f"{folder} was written with {written.conversations:,} training conversations, but there are"
                f" {self.conversations:,} now (images are missing, or another version of this program reads the data"
                " differently)"
            )
        else:
            return
        raise ResumeError(
            f"{found}, so resuming would repeat some conversations and miss others: {_instead(folder)}"
        )

    def _check_flags(self, written: "Run", folder: Path) -> None:
        flags, models = self.flags, self.models
        assert flags is not None and models is not None, "a run of now knows its own"
        if written.flags is None or written.models is None:
            logger.info("%s does not record its flags, so they are not compared", folder)
            return
        before = {**BEFORE, **written.flags}
        before.setdefault("train", _trained(PUBLISHED, before))
        if isinstance(before["frozen_bits"], int):  # the decoder's alone
            before["frozen_bits"] = [before["frozen_bits"], 0]
        changed = {
            name: f"--{name} {_shown(before[name])} (now {_shown(flags[name])})"
            for name in sorted(before.keys() & flags.keys())
            if before[name] != flags[name]
        }
        if set(before["train"]) ^ set(flags["train"]) <= {"lora", "gate"} and _MADE_BY_FLAGS & changed.keys():
            changed.pop("train", None)  # it follows from a flag that is named anyway
        fixed = FIXED | {flag for flag in _MODELS if written.models[flag] != models[flag]}
        if any(each["lr_scheduler_type"] in _ADAPTIVE for each in (written.flags, flags)):
            fixed |= set(_SCHEDULE)
        if bool(before.get("lora_learning_rate")) != bool(flags["lora_learning_rate"]):
            fixed.add("lora_learning_rate")  # with a rate of their own, adapters are a group of their own
        refused = [said for name, said in changed.items() if name in fixed]
        refused += [
            f"--{flag} {_shown(flags[flag])} with different weights"
            for flag in _MODELS
            if flag in fixed and flag not in changed
        ]
        if refused:
            raise ResumeError(
                f"{folder} was written with {', '.join(refused)}, which cannot change within a run: {_instead(folder)}"
            )
        if changed:
            logger.info("changed since %s: %s", folder.name, ", ".join(changed.values()))


def _instead(folder: Path) -> str:
    return f"set it as before, or start a new run from these weights (--init_from {folder} and another --output_dir)"


def _recorded(
    model: ModelArguments, data: DataArguments, training: VisualChatTrainingArguments
) -> dict[str, Any]:
    """All flags that are recorded, in one form each, as JSON holds them."""
    values = {
        each.name: getattr(arguments, each.name)
        for arguments in (model, data, training)
        for each in fields(arguments)
        if each.name not in UNRECORDED
    }
    values["vis_proj"], values["attention"] = model.projector, model.attention_name
    values["image_layers"], values["image_gate"] = model.images_go_through, model.gate
    values["train"] = _trained(model.train or PUBLISHED, values)
    values["image_summary"], values["frozen_bits"] = model.summary, model.quantised
    for part in ("lang", "vis"):
        if not values[f"{part}_lora_dim"]:
            del values[f"{part}_lora_module_name"]
    for name in ("dataset_samples", "dataset_concatenate_samples", "dataset_weights"):
        values[name] = one_for_each(values[name], data.dataset_names, name)
    values["max_images_per_row"] = images_per_row(data) if data.packing else 0
    own = training.hf_deepspeed_config.config
    values["deepspeed_config"] = {
        key: found
        for key, found in (
            ("optimizer", (own.get("optimizer") or {}).get("type")),
            ("scheduler", (own.get("scheduler") or {}).get("type")),
            ("sub_group_size", (own.get("zero_optimization") or {}).get("sub_group_size")),
        )
        if found is not None
    }
    return json.loads(json.dumps(values, default=lambda value: getattr(value, "value", str(value))))


def _trained(train: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    """The parts that learn, in one order, without those that the model lacks."""
    lacking = {"gate"} if flags["image_gate"] == "none" else set()
    if not (flags["lang_lora_dim"] or flags["vis_lora_dim"]):
        lacking.add("lora")
    return sorted(set(train) - lacking, key=lambda part: PARTS.index(part.partition(":")[0]))


def _model_identity(name: str) -> str:
    """A digest of a model folder's configuration and weights, wherever it is; of a model on a hub, its name."""
    folder = Path(name.removeprefix("local-dir:"))
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name.endswith(("config.json", ".safetensors", ".bin", ".pt")) and path.is_file():
            size = path.stat().st_size
            with path.open("rb") as file:
                digest.update(f"{path.name} {size} ".encode() + file.read(_DIGESTED))
                file.seek(max(size - _DIGESTED, 0))
                digest.update(file.read())
    return digest.hexdigest()


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items()) or "without its own"
    return str(value).lower() if isinstance(value, bool) else str(value)
