"""A new training that begins with what an earlier one learnt, as where a projector is aligned first and tuned later."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .building import of_base_models
from .configuration_visual_chat import VisualChatConfig
from .loading import TRAINED_WEIGHTS, CheckpointError, gathered
from .lora import GATE, PUBLISHED, is_lora, names_of, plain_name
from .modeling_visual_chat import VisualChatForConditionalGeneration


def init_from(model: VisualChatForConditionalGeneration, folder: str | Path) -> int:
    """Copy what a checkpoint, in either form, has learnt into a model just built; returns the number of weights.

    These are embedding, projector, image gate, adapters, and what was trained of decoder and encoder, which the model
    holds from then on, whether it goes on learning or not. Adapters that the checkpoint does not have stay as new. A
    gate that it does not have begins at 1 where it learnt under mmca, which is what it computed, and at 0 otherwise.
    Works on weights that ZeRO-3 has partitioned: all processes call.

    Raises `CheckpointError` where the folder is no checkpoint, where its adapters have no place in the model or
    are merged into weights that were frozen, or where a weight is missing or has another shape.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json; give a checkpoint: best, final or checkpoint-N of a run"
        )
    theirs = VisualChatConfig.from_pretrained(folder)
    if is_merged(folder):
        raise CheckpointError(
            f"{folder} has adapters merged into its decoder or encoder, or was written by save_pretrained; start from a"
            " checkpoint in the trained form (checkpoint-N, or a run with --checkpoint_form trained), or train on with"
            " that decoder's own folder"
        )
    held = names_of(model, (*PUBLISHED, *(theirs.trained_parts or ())))
    places = {plain_name(name): parameter for name, parameter in model.named_parameters() if name in held}
    if theirs.image_gate != "none" and model.model.image_gate is None:
        raise CheckpointError(
            f"{folder} has learnt an image gate that this run has not; give --image_gate head"
        )
    found: set[str] = set()
    for name, tensor in _learnt(folder, set(places)):
        parameter = places[name]
        if not parameter.is_floating_point():
            raise CheckpointError(
                f"{folder} has trained weights of the decoder, which --frozen_bits would quantise; leave it out"
            )
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{name} is {list(tensor.shape)} in {folder}, but {list(shape)} here: is it of the same decoder,"
                " encoder, projector and LoRA rank?"
            )
        with gathered(parameter, write=True), torch.no_grad():
            parameter.copy_(tensor)
        found.add(name)
    if theirs.image_gate == "none" and theirs.attention == "mmca" and model.model.image_gate is not None:
        with gathered(*model.model.image_gate.parameters(), write=True), torch.no_grad():
            for factors in model.model.image_gate.parameters():
                factors.fill_(1.0)
    missing = sorted(name for name in set(places) - found if not is_lora(name))
    if theirs.image_gate == "none":
        missing = [name for name in missing if not name.startswith(GATE)]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing[:3])}: its projector is {theirs.projector_type}, that of this run"
            f" {model.config.projector_type}; give the same --vis_proj"
        )
    model.config.trained_parts = of_base_models(model.config.trained_parts, theirs.trained_parts)
    return len(found)


def is_merged(folder: str | Path) -> bool:
    """Whether a checkpoint's weights can no longer be told from its base models': adapters are merged into them, or it
    was written by `save_pretrained`.
    """
    config = VisualChatConfig.from_pretrained(folder)
    return config.checkpoint_form == "full" and not config.frozen_from


def _learnt(folder: Path, names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights called so, one after the other; `CheckpointError` for adapters that are not among them."""
    files = sorted(folder.glob("model*.safetensors"))
    trained = folder / TRAINED_WEIGHTS
    if trained.is_file():
        files = [trained]
    if not files:
        raise CheckpointError(f"{folder} holds no weights; copy the whole checkpoint")
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                homeless = [name for name in weights.keys() if is_lora(name) and name not in names]  # noqa: SIM118
                if homeless:
                    raise CheckpointError(
                        f"{folder} has adapters that this run has not ({homeless[0]}); give the same --lang_lora_dim,"
                        " --vis_lora_dim and names of modules"
                    )
                for name in sorted(names.intersection(weights.keys())):  # all processes in the same order
                    yield name, weights.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged ({error}); copy the checkpoint again") from error
