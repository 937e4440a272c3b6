"""Checkpoint folders that load themselves, in two forms, without pickle.

- full: every weight, sharded safetensors; adapters are merged, so loading needs no peft.
- trained: what was learned (embedding, projector, image gate, adapters, and what of decoder or encoder was trained)
  and references to the base models.

Both hold config.json, generation config, processor, tokenizer, chat template, a model card, and the code of
the model, so that `trust_remote_code=True` loads them where this project is not installed. Writing is not
atomic here: the caller chooses the folder and gives it its name when it is complete.
"""

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save

from .configuration_visual_chat import VisualChatConfig
from .loading import (
    HEAD,
    NEW_HEAD_ROWS,
    NEW_PARTS,
    TRAINED_WEIGHTS,
    CheckpointError,
    copy_encoder_code,
    name_auto_classes,
)
from .lora import LoraSettings, held_names, merge_lora, plain_name
from .modeling_visual_chat import VisualChatForConditionalGeneration
from .processing_visual_chat import VisualChatProcessor
from .vision import FAMILIES

SHARD_SIZE = "5GB"
_FILES = ("config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json")  # beside weights


def save_full(
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write every weight, with adapters merged. state_dict: whole weights where the model's are in parts."""
    write_form(model, processor, folder, *full_form(model, state_dict))


def save_trained_only(
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write what was learned, and where the other weights come from; state_dict as in `save_full`.

    What has learned of decoder and encoder is what the configuration's `trained_parts` says.
    """
    write_form(model, processor, folder, *trained_form(model, state_dict))


def full_form(
    model: VisualChatForConditionalGeneration, state_dict: dict[str, torch.Tensor] | None = None
) -> tuple[VisualChatConfig, dict[str, torch.Tensor]]:
    """Configuration and weights of the full form; state_dict as in `save_full`."""
    state = model.state_dict() if state_dict is None else state_dict
    config = copy.deepcopy(model.config)
    state = merge_lora(state, LoraSettings(**config.lora) if config.lora else None)
    if config.lora:
        # merged: no longer the base models' weights
        config.lora = config.frozen_from = config.trained_parts = None
    config.checkpoint_form = "full"
    return config, state


def trained_form(
    model: VisualChatForConditionalGeneration, state_dict: dict[str, torch.Tensor] | None = None
) -> tuple[VisualChatConfig, dict[str, torch.Tensor]]:
    """Configuration and weights of the trained form; state_dict as in `save_full`."""
    if not model.config.frozen_from:
        raise CheckpointError(
            "this model's base models are unknown (its checkpoint has merged adapters, or was written by"
            " save_pretrained), so it can be saved in the full form only"
        )
    trained = trained_weights(model, model.state_dict() if state_dict is None else state_dict)
    config = copy.deepcopy(model.config)
    config.checkpoint_form = "trained"
    return config, trained


def write_form(
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    folder: str | Path,
    config: VisualChatConfig,
    weights: dict[str, torch.Tensor],
) -> None:
    """Write what `full_form` or `trained_form` gave. Of `model` only the code and the generation settings are read."""
    _write_surroundings(model, config, processor, folder, weights)
    if config.checkpoint_form == "trained":
        save_file(weights, Path(folder) / TRAINED_WEIGHTS, metadata={"format": "pt"})
    else:
        name = "model{suffix}.safetensors"
        save_torch_state_dict(weights, str(folder), filename_pattern=name, max_shard_size=SHARD_SIZE)


def load_checkpoint(
    folder: str | Path,
    device_map: str | dict[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
    **kwargs: Any,
) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    """Model and processor from either form, strictly.

    kwargs go to `from_pretrained`: `base_models` where a trained-only checkpoint's base models have moved,
    `attention` and `image_layers` to read the same weights with others than they learnt with. Raises
    `CheckpointError` with one line that says what is wrong with the folder.
    """
    processor = load_processor(folder)
    with _damage_named(folder):
        model = AutoModelForImageTextToText.from_pretrained(
            folder, device_map=device_map, dtype=dtype, **kwargs
        )
    return model, processor


def load_processor(folder: str | Path) -> VisualChatProcessor:
    """The processor of a checkpoint, of which no weights are read; raises as `load_checkpoint` does."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}; check the path")
    for name in _FILES:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}, so it is not a whole checkpoint; copy it again")
    _refuse_damaged_json(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type = config.get("model_type")
    if model_type != VisualChatConfig.model_type:
        raise CheckpointError(f"{folder} holds a model of type {model_type!r}, not a VisualChat checkpoint")
    encoder = (config.get("vision_config") or {}).get("model_type")
    if encoder is not None and encoder not in FAMILIES:
        raise CheckpointError(
            f"{folder} has a visual encoder of type {encoder!r}, which is not one of this project's: give --plugin with"
            " the module that registers it"
        )
    with _damage_named(folder):
        return AutoProcessor.from_pretrained(folder)


@contextmanager
def _damage_named(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        line = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{folder} is not a whole checkpoint; copy it again ({line})") from error


def _refuse_damaged_json(folder: Path) -> None:
    """Half-copied files, found here because each of the loaders would report them in its own way."""
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}); copy the checkpoint again") from error


def trained_weights(
    model: VisualChatForConditionalGeneration, state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The part of a state dict that no base model has (`lora.held_names`), and the head's added rows: of its whole
    head, or as they are named alone.

    Adapted layers that were trained too are named as they are without adapters.
    """
    held = held_names(model)
    trained = {
        plain_name(name): tensor.detach().contiguous()
        for name, tensor in state.items()
        if name in held or name.startswith(NEW_PARTS)
    }
    rows = state.get(NEW_HEAD_ROWS)
    if rows is None and HEAD not in trained:
        rows = new_head_rows(model, state[HEAD]).detach().clone()
    if rows is not None and len(rows):
        trained[NEW_HEAD_ROWS] = rows
    return trained


def new_head_rows(model: VisualChatForConditionalGeneration, head: torch.Tensor) -> torch.Tensor:
    """The rows of a whole head [V, D] that its base model has not."""
    return head[model.config.frozen_from["vocab_size"] :]


@contextmanager
def _disk_errors_of_tokenizers() -> Iterator[None]:
    """As `OSError`: the tokenizers library raises a bare `Exception` that ends in "(os error 28)"."""
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)$", str(error))
        if isinstance(error, OSError) or not number:
            raise
        raise OSError(int(number[1]), str(error)) from error


def _write_surroundings(
    model: VisualChatForConditionalGeneration,
    config: VisualChatConfig,
    processor: VisualChatProcessor,
    folder: str | Path,
    state: dict[str, torch.Tensor],
) -> None:
    """Everything of a checkpoint but its weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    config.architectures = [type(model).__name__]
    name_auto_classes(config)
    custom_object_save(model, folder, config=config)
    copy_encoder_code(model, folder)
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    with _disk_errors_of_tokenizers():
        processor.save_pretrained(folder)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    (folder / "README.md").write_text(model_card(config, size), encoding="utf-8")


_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
---

# A VisualChat checkpoint

It chats about any number of images over several rounds: a {encoder} encoder ({tokens} tokens an image), a
{projector} projector and a {decoder} decoder, joined by the attention "{attention}".

{form}

## Load it

With the VisualChat project, from its root:

```python
import utils.model  # registers the model with transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this/folder", device_map="auto")
processor = AutoProcessor.from_pretrained("this/folder")
```

Without it, leave out the first line and give both calls `trust_remote_code=True`; the folder holds the code.

## Ask it

```python
messages = [{{"role": "user", "content": [
    {{"type": "image", "path": "first.jpg"}}, {{"type": "image", "path": "second.jpg"}},
    {{"type": "text", "text": "What differs between image 1 and image 2?"}}]}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
answer = model.generate(**inputs.to(model.device), max_new_tokens=256)
print(processor.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""

_FULL = "This folder holds all weights ({size}); nothing else is needed."
_TRAINED = """\
This folder holds the trained weights only ({size}): the decoder's input embedding, the projector{others}.
The other weights come from the decoder `{language_model}` and the encoder `{vision_model}`. Where
these are somewhere else, say so:
`from_pretrained(..., base_models={{"language_model": ..., "vision_model": ...}})`."""


def model_card(config: VisualChatConfig, size: int) -> str:
    """The card of a checkpoint whose weights take `size` bytes."""
    if config.checkpoint_form == "full":
        form = _FULL.format(size=readable_size(size))
    else:
        others = ["low-rank adapters"] if config.lora else []
        others += [f"trained weights of the {part}" for part in config.trained_parts or ()]
        said = "".join(f", {each}" for each in others)
        form = _TRAINED.format(size=readable_size(size), others=said, **(config.frozen_from or {}))
    vision: PreTrainedConfig = config.vision_config
    text: PreTrainedConfig = config.text_config
    return _CARD.format(
        encoder=vision.model_type,
        tokens=config.image_seq_length,
        projector=config.projector_type,
        decoder=text.model_type,
        attention=config.attention,
        form=form,
    )


def readable_size(size: int) -> str:
    """Bytes in the largest unit that leaves at least one: "812 MB", "13.5 GB"."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"
