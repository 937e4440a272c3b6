"""What learns: parameters by parts, decided here and nowhere else, and low-rank adapters (LoRA) beside frozen ones.

The parts are the decoder's input embedding (`embedding`), the projection (`projector`), the image gate (`gate`), the
decoder's layers, final norm and head (`decoder`), the visual encoder (`encoder`), and the adapters in both (`lora`).
`decoder:top-4` is the decoder from its last 4 layers on, norm and head included. Adapters are peft's, without a wrapper
around the model.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

DECODER, ENCODER, PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."
GATE = "model.image_gate."

PARTS = ("embedding", "projector", "gate", "decoder", "encoder", "lora")
PUBLISHED = ("embedding", "projector", "gate", "lora")
"""The published recipe: what no base model has, and the embedding; gate and adapters where there are any."""

_PREFIXES = {PROJECTOR: "projector", GATE: "gate", ENCODER: "encoder"}
_LAST_LAYERS = re.compile(r"decoder:top-([1-9]\d*)")

_ADAPTER = "default"
_DOWN, _UP, _BASE = f".lora_A.{_ADAPTER}.weight", f".lora_B.{_ADAPTER}.weight", ".base_layer."


@dataclass(frozen=True)
class LoraSettings:
    """Which linear layers get adapters, and of which rank; rank 0 means none.

    A layer is adapted where its name contains `lang_module_name` (decoder) or `vis_module_name` (encoder).
    The decoder's names start with "model.", as in a stock causal language model. alpha: the update counts
    alpha / rank times; None takes the rank, so once. only_optimize_lora: in the
    configurations of earlier checkpoints; it says which parts their run froze, and nothing of the model.
    """

    lang_dim: int = 0
    lang_module_name: str = "model.layers."
    vis_dim: int = 0
    vis_module_name: str = "encoder.layers."
    only_optimize_lora: bool = False
    alpha: float | None = None

    def __bool__(self) -> bool:
        return self.lang_dim > 0 or self.vis_dim > 0

    def scaling(self, rank: int) -> float:
        """What the product of the two low-rank matrices is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / rank


def inject_lora(model: nn.Module, settings: LoraSettings) -> None:
    """Put adapters into a model's decoder and encoder, in place; they start as the identity."""
    _inject(model.model.language_model, settings.lang_dim, settings.lang_module_name, "model.", settings)
    _inject(model.model.vision_tower, settings.vis_dim, settings.vis_module_name, "", settings)


def _inject(module: nn.Module, rank: int, wanted: str, prefix: str, settings: LoraSettings) -> None:
    if rank == 0:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs the package peft: pip install peft") from error
    layers = linear_layers(module)
    names = [name for name in layers if wanted in prefix + name]
    if not names:
        raise ValueError(
            f"LoRA finds no linear layer of {type(module).__name__} with {wanted!r} in its name; they are named"
            f" {', '.join(prefix + name for name in layers[:2])}, ..."
        )
    config = LoraConfig(r=rank, lora_alpha=settings.scaling(rank) * rank, target_modules=names)
    inject_adapter_in_model(config, module, adapter_name=_ADAPTER)


def linear_layers(module: nn.Module) -> list[str]:
    """The names of the linear layers that are called as layers.

    Those inside torch's own multi-head attention are not: it takes their weights, and would pass adapters by.
    """
    passed_by = {
        f"{name}." for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)
    }
    return [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and not name.startswith(tuple(passed_by))
    ]


def is_lora(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def is_adapted(name: str) -> bool:
    """Whether a parameter is the weight of a layer with an adapter, which merging changes."""
    return name.endswith(_BASE + "weight")


def plain_name(name: str) -> str:
    """The name of a weight as it is where its layer has no adapter."""
    return name.replace(_BASE, ".")


def merge_lora(state: dict[str, torch.Tensor], settings: LoraSettings | None) -> dict[str, torch.Tensor]:
    """A state dict of the same model without adapters: each adapted weight W becomes W + scaling * B A."""
    if settings is None:
        return state
    merged = {}
    for name, tensor in state.items():
        if is_lora(name):
            continue
        layer = name.removesuffix("weight").removesuffix(_BASE)
        if is_adapted(name) and layer + _DOWN in state:
            down, up = state[layer + _DOWN].float(), state[layer + _UP].float()  # [r, in], [out, r]
            update = settings.scaling(down.shape[0]) * (up @ down)
            tensor = (tensor.float() + update).to(tensor.dtype)
        merged[plain_name(name)] = tensor
    return merged


def part_of_each(model: nn.Module) -> dict[str, str]:
    """The part that each parameter belongs to, by its name, in the model's order."""
    embedding = model.get_input_embeddings().weight
    parts = {}
    for name, parameter in model.named_parameters():
        if is_lora(name):
            parts[name] = "lora"
        elif parameter is embedding:
            parts[name] = "embedding"
        else:
            parts[name] = next(
                (part for prefix, part in _PREFIXES.items() if name.startswith(prefix)), "decoder"
            )
    return parts


def names_of(model: nn.Module, train: Sequence[str]) -> set[str]:
    """The names of the parameters in these parts; raises `ValueError` as `freeze` does."""
    layers = len(getattr(model.model.language_model, "layers", ()))
    check_parts(train, layers)
    parts = part_of_each(model)
    names = {name for name, part in parts.items() if part in train}
    for count in last_layers(train):
        decoder = [name for name, part in parts.items() if part == "decoder"]
        first = f"{DECODER}layers.{layers - count}."
        begin = next(place for place, name in enumerate(decoder) if name.startswith(first))
        names.update(decoder[begin:])  # the final norm and the head come after the layers
    return names


def check_parts(train: Sequence[str], layers: int | None = None) -> None:
    """Raise `ValueError`, in one line, for a word that names no part, for the decoder named twice, and for more layers
    than it has, where that is known.
    """
    for word in train:
        if word not in PARTS and not _LAST_LAYERS.fullmatch(word):
            raise ValueError(
                f"{word} is no part: choose of {', '.join(PARTS)}, or decoder:top-4 for 4 layers"
            )
    if len([word for word in train if word.startswith("decoder")]) > 1:
        raise ValueError(f"{' '.join(train)}: name the decoder once")
    for count in last_layers(train):
        if layers is not None and count > layers:
            raise ValueError(f"decoder:top-{count}: this decoder has {layers} layers")


def held_names(model: nn.Module) -> set[str]:
    """The parameters that a checkpoint of trained weights holds: those of no base model, the embedding, and what was
    trained of the base models (the configuration's `trained_parts`)."""
    return names_of(model, (*PUBLISHED, *(model.config.trained_parts or ())))


def last_layers(words: Sequence[str]) -> list[int]:
    """Of how many layers these words speak."""
    return [int(found[1]) for word in words if (found := _LAST_LAYERS.fullmatch(word))]
