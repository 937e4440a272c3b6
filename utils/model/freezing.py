"""What learns: parameters by parts, decided here and nowhere else.

The parts are the decoder's input embedding (`embedding`), the projection (`projector`), the image gate (`gate`), the
decoder's layers, final norm and head (`decoder`), the visual encoder (`encoder`), and the adapters in both (`lora`).
`decoder:top-4` is the decoder from its last 4 layers on, norm and head included.
"""

import re
from collections.abc import Sequence

from torch import nn

from .lora import is_lora

DECODER, ENCODER, PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."
GATE = "model.image_gate."

PARTS = ("embedding", "projector", "gate", "decoder", "encoder", "lora")
PUBLISHED = ("embedding", "projector", "gate", "lora")
"""The published recipe: what no base model has, and the embedding; gate and adapters where there are any."""

_PREFIXES = {PROJECTOR: "projector", GATE: "gate", ENCODER: "encoder"}
_LAST_LAYERS = re.compile(r"decoder:top-([1-9]\d*)")


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
