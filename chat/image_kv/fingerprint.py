"""What a model makes of images, in a few letters: the same weights and settings have the same fingerprint."""

import hashlib
import json
import uuid
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from utils.plugins import code_of

_AS_WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_SAMPLED = 256  # numbers of each tensor
_LABELS = {"_name_or_path", "architectures", "auto_map", "processor_class", "transformers_version"}
"""What saving and loading write into settings, and what changes nothing."""
_FORM = 3  # of what is stored under a fingerprint, and of how images are read


def image_fingerprint(model: PreTrainedModel, processor: ProcessorMixin) -> str:
    """Covers the way from a picture's bytes to its keys and values: preprocessing, encoder, projector, decoder.

    Of each tensor the exact sum of its bits and a sample of them count: reading 7 billion weights takes a
    second or two, where hashing them would take half a minute. Weights that are not in memory (offloaded, or
    partitioned over processes) cannot be compared: then the fingerprint is this object's alone.
    """
    known = hashlib.sha256()
    parts = (processor.image_processor, model.config.vision_config, model.config.get_text_config())
    settings: list[Any] = [_without_labels(part.to_dict()) for part in parts]
    settings.append(code_of(type(model.model.vision_tower)))
    if model.config.image_layers != "full":
        settings.append({"image_layers": model.config.image_layers})
    known.update(json.dumps([_FORM, settings], sort_keys=True, default=str).encode())
    for name, tensor in _tensors(model):
        if tensor.device.type == "meta" or hasattr(tensor, "ds_id"):
            return uuid.uuid4().hex
        known.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        known.update(_digest(tensor))
    return known.hexdigest()


def _without_labels(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _LABELS}


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """What images go through: not the table of words, nor the head."""
    table = model.get_input_embeddings()
    words = {id(parameter) for parameter in table.parameters()}
    inner = model.model
    for name, part in [
        ("encoder", inner.vision_tower),
        ("projector", inner.multi_modal_projector),
        ("decoder", inner.language_model),
    ]:
        for kind, tensors in [("weights", part.named_parameters()), ("buffers", part.named_buffers())]:
            for own, tensor in tensors:
                if id(tensor) not in words:
                    yield f"{name} {kind} {own}", tensor


@torch.inference_mode()
def _digest(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().flatten()
    if flat.dtype in (torch.bool, torch.complex64, torch.complex128):
        flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat.to(torch.int8)
    bits = flat.view(_AS_WHOLE_NUMBERS[flat.element_size()])
    step = max(1, bits.numel() // _SAMPLED)
    found = torch.cat([bits.sum(dtype=torch.int64)[None], bits[::step].to(torch.int64)])
    return found.cpu().numpy().tobytes()
