"""Converts, compares and uploads the forms of a checkpoint; `helper.export_checkpoint` is the command."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi
from PIL import Image

from helper.adapter_folders import check_adapters, write_adapters
from training.checkpointing.folders import MANIFEST, RUN, TRAINER_STATE, damage, write_manifest
from training.checkpointing.run_record import Run
from utils.atomic import atomic_directory
from utils.model import (
    CheckpointError,
    VisualChatForConditionalGeneration,
    VisualChatProcessor,
    load_checkpoint,
    save_full,
    save_trained_only,
)

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
