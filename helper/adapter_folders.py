"""Low-rank adapters as peft's own folders, one for the decoder and one for the encoder.

They fit the base models as published: `PeftModel.from_pretrained(base, folder)`. What else was trained,
embedding and projector, is not in them.
"""

from pathlib import Path

import torch
from peft import LoraConfig, load_peft_weights
from safetensors.torch import save_file

from utils.model import CheckpointError, LoraSettings, VisualChatForConditionalGeneration
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
