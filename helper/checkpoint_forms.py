"""Converts, compares and uploads the forms of a checkpoint; `helper.export_checkpoint` is the command."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi
from peft import LoraConfig, load_peft_weights
from PIL import Image
from safetensors.torch import save_file

from training.checkpointing.folders import MANIFEST, RUN, TRAINER_STATE, damage, write_manifest
from training.checkpointing.run_record import Run
from utils.atomic import atomic_directory
from utils.model import (
    CheckpointError,
    LoraSettings,
    VisualChatForConditionalGeneration,
    VisualChatProcessor,
    load_checkpoint,
    save_full,
    save_trained_only,
)
from utils.model.loading import DECODER, ENCODER
from utils.model.lora import is_lora, merge_lora

_OURS, _PEFTS = ".default.weight", ".weight"  # peft leaves the adapter's name out of its files
# Name of the folder, of the base model, the prefix of our names and of those in the base model's own class.
_PARTS = (("decoder", "language_model", DECODER, "model."), ("encoder", "vision_model", ENCODER, ""))


def write_adapters(model: VisualChatForConditionalGeneration, folder: Path) -> None:
    """Write the adapters of a model that has some; raises `CheckpointError` where it has none."""
    settings = _settings(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if is_lora(name)}
    bases = model.config.frozen_from or {}
    for part, base, prefix, theirs in _PARTS:
        mine = {
            f"base_model.model.{theirs}{name.removeprefix(prefix)}".replace(
                _OURS, _PEFTS
            ): tensor.contiguous()
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
        if not mine:
            continue
        rank = next(tensor.shape[0] for name, tensor in mine.items() if ".lora_A." in name)
        layers = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in mine}
        config = LoraConfig(
            r=rank,
            lora_alpha=settings.scaling(rank) * rank,
            target_modules=sorted(layers),
            base_model_name_or_path=bases.get(base),
            task_type="CAUSAL_LM" if part == "decoder" else None,
            inference_mode=True,
        )
        config.save_pretrained(folder / part)
        save_file(mine, folder / part / "adapter_model.safetensors", metadata={"format": "pt"})


def check_adapters(model: VisualChatForConditionalGeneration, folder: Path) -> str:
    """Hold the adapters in `folder`, read by peft, to the merged weights of the model they come from."""
    settings, state = _settings(model), model.state_dict()
    merged = merge_lora(state, settings)
    count = 0
    for part, _, prefix, theirs in _PARTS:
        if not (folder / part).is_dir():
            continue
        config, weights = LoraConfig.from_pretrained(folder / part), load_peft_weights(folder / part, "cpu")
        for layer in config.target_modules:
            down, up = (weights[f"base_model.model.{layer}.lora_{each}.weight"].float() for each in "AB")
            ours = prefix + layer.removeprefix(theirs)
            base = state[f"{ours}.base_layer.weight"]
            update = config.lora_alpha / config.r * (up @ down)
            if not torch.equal((base.float().cpu() + update).to(base.dtype), merged[f"{ours}.weight"].cpu()):
                raise CheckpointError(f"the adapter of {ours} reads back as another; nothing was written")
            count += 1
    return f"{count} adapters read back by peft give the same weights when they are merged"


def _settings(model: VisualChatForConditionalGeneration) -> LoraSettings:
    if not model.config.lora:
        raise CheckpointError(
            "this checkpoint has no adapters: it was trained without LoRA, or they are merged (the full form);"
            " export from a checkpoint-N, or from a checkpoint in the trained form"
        )
    if model.config.trained_parts:
        raise CheckpointError(
            f"this checkpoint has trained {', '.join(model.config.trained_parts)} beside the adapters, which therefore"
            " do not fit the base models: export the form full"
        )
    return LoraSettings(**model.config.lora)


TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How much logits may differ, root mean square of root mean square: merging rounds adapted weights once more."""


@dataclass(frozen=True)
class Export:
    """What to make of which checkpoint. base_models: places of the frozen ones, where they have moved."""

    source: Path
    output: Path
    form: str
    base_models: dict[str, str]
    dtype: str = "auto"
    device_map: str = "cpu"


def export(task: Export) -> str:
    """Write the new form and return what the comparison found, in a line.

    Raises `CheckpointError` where the source is damaged, does not hold what the form needs, or where the new
    form computes something else.
    """
    if task.output.exists():
        raise CheckpointError(f"{task.output} exists already; give another --output, or remove it")
    if (task.source / MANIFEST).exists():
        damaged = damage(task.source)
        if damaged:
            raise CheckpointError(f"{task.source} is damaged: {'; '.join(damaged)}")
    model, processor = _load(task, task.source)
    with atomic_directory(task.output) as folder:
        if task.form == "adapter":
            write_adapters(model, folder)
            found = check_adapters(model, folder)
        else:
            save = save_full if task.form == "full" else save_trained_only
            if task.base_models and model.config.frozen_from:
                model.config.frozen_from |= task.base_models
            save(model, processor, folder)
            expected = _logits(model, processor)
            dtype = model.dtype
            del model  # two at a time need not fit
            found = _compare(expected, _logits(*_load(task, folder)), dtype)
            card = folder / "README.md"
            card.write_text(card.read_text(encoding="utf-8") + training_record(task.source), encoding="utf-8")
        write_manifest(folder)
    return found


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder to a hub repository, made where it is missing; returns its address."""
    api = HfApi()
    name = api.create_repo(repository, private=private, exist_ok=True).repo_id
    return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name}"))


def _load(task: Export, folder: Path) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    return load_checkpoint(
        folder, device_map=task.device_map, dtype=task.dtype, base_models=task.base_models or None
    )


def _logits(model: VisualChatForConditionalGeneration, processor: VisualChatProcessor) -> torch.Tensor:
    """Logits [1, S, V] of a dialogue over two drawn pictures and of its answer, in float32."""
    generator = torch.Generator().manual_seed(0)
    content = []
    for _ in range(2):
        pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=generator)
        content.append({"type": "image", "image": Image.fromarray(pixels.numpy()).resize((256, 256))})
    content.append({"type": "text", "text": "What differs between image 1 and image 2?"})
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "One is bright, the other is dark."}]},
    ]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs.to(model.device)).logits.float().cpu()


def _compare(expected: torch.Tensor, found: torch.Tensor, dtype: torch.dtype) -> str:
    difference = ((expected - found).norm() / expected.norm()).item()
    if not difference <= TOLERANCE[dtype]:  # not a number is no agreement either
        raise CheckpointError(
            f"the new form does not compute the same as its source: logits differ by {difference:.1%};"
            " are the base models the ones that it was trained with? Nothing was written"
        )
    same = (expected.argmax(-1) == found.argmax(-1)).float().mean().item()
    return f"logits differ by {difference:.1e} of their size; {same:.1%} of the likeliest tokens are the same"


def training_record(folder: Path) -> str:
    """A section of a model card, in Markdown; empty where the folder does not say (best and final do not)."""
    if not (folder / TRAINER_STATE).is_file() or not (folder / RUN).is_file():
        return ""
    state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
    run = Run.load(folder)
    rows = [
        ("steps", f"{state['global_step']:,} of {state['max_steps']:,}"),
        ("epochs", f"{state['epoch']:.2f}"),
        ("conversations (or packed rows) a step", f"{run.global_batch:,}"),
        ("processes", f"{run.processes}, ZeRO {run.zero_stage}, {run.precision}"),
    ]
    for name, key in (("training loss", "loss"), ("evaluation loss", "eval_loss")):
        values = [line[key] for line in state["log_history"] if key in line]
        if values:
            rows.append((name, f"{values[0]:.4f} at first, {values[-1]:.4f} at last"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"\n## How it was trained\n\n| | |\n|---|---|\n{table}\n"
