"""Images that the decoder has read once: their keys and values, for any turn of any conversation.

Under multi-modal causal attention they depend on the image alone, but for the rotation of keys by position; so
an image goes through encoder and decoder once, whoever asks about it and wherever it stands. One store serves
all sessions and evaluations of a model, in any threads.
"""

import hashlib
import json
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from chat.image_kv.encoder import CannotReuseKV, ImageKV, ImageKVEncoder
from chat.image_kv.reading import CachedImageReading, Found
from chat.image_kv.tiers import ImageKVFiles, ImageKVTiers
from chat.images import View
from chat.limits import StoreLimits
from utils.conversation import longest_dialogue
from utils.distributed import get_logger
from utils.plugins import code_of

logger = get_logger(__name__)

_AT_ONCE = 8  # images that go through encoder and decoder together


@dataclass(frozen=True)
class StoreStatistics:
    """What a store did so far.

    found: images that were in memory. encoded_images: images that went through the encoder; image_tokens: tokens of
    theirs that went through the decoder.
    """

    found: int
    encoded_images: int
    image_tokens: int


class ImageStore:
    """Keeps what a model computes for images, and computes what it does not have.

    An image is known by its bytes. A store is one model's, as its weights were when the store was made: weights
    that change need a new one. On the disk the weights' and the preprocessing's fingerprint is part of what an
    image is kept under, so a folder can be shared between models.

    Raises `CannotReuseKV` for a model whose image tokens see anything but themselves (attention causal or
    cross), and for a decoder whose keys cannot be moved to other positions.
    """

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, limits: StoreLimits | None = None
    ) -> None:
        if model.config.attention != "mmca":
            raise CannotReuseKV(
                f"under attention {model.config.attention!r} images depend on what stands before"
            )
        self._model, self._processor = model.eval(), processor
        self.encoder = ImageKVEncoder(model.model.language_model, model.config.image_layers)
        limits = limits or StoreLimits()
        self._fingerprint = image_fingerprint(model, processor) if limits.folder else ""
        self._tiers = ImageKVTiers(limits, self.encoder.devices)
        self._files = ImageKVFiles(limits.folder, limits.disk) if limits.folder else None
        self._lock = threading.Lock()  # held while images are computed: others wait for them
        self._found = self._computed = 0

    @property
    def reach(self) -> int:
        """Dialogues of at most this many tokens can use the store."""
        return self.encoder.reach

    def serves(self, model: PreTrainedModel) -> bool:
        """Whether it is this model's."""
        return self._model is model

    def reading(self, size: int = 1) -> CachedImageReading:
        """Of dialogues of the model, `size` of them, whose images come from here."""
        return CachedImageReading(self._model, self, size)

    @property
    def statistics(self) -> StoreStatistics:
        """What was done so far."""
        return StoreStatistics(self._found, self._computed, self._computed * self._processor.image_seq_length)

    def states(self, images: Sequence[View]) -> Found:
        """The states of images, in their order; equal images, in other threads too, are computed once.

        Raises what preprocessing and model raise; then nothing of that call is kept.
        """
        keys = [sha256(f"{self._fingerprint} {image.digest}".encode()).hexdigest() for image in images]
        wanted = dict(zip(keys, images, strict=True))
        with self._lock:
            found = {key: states for key in wanted if (states := self._tiers.get(key)) is not None}
            self._found += len(found)
            made: dict[str, ImageKV] = {}
            if self._files is not None:
                read = {
                    key: self._files.read(key, self.encoder.devices) for key in wanted if key not in found
                }
                made = {key: states for key, states in read.items() if states is not None}
            missing = [key for key in wanted if key not in found and key not in made]
            for start in range(0, len(missing), _AT_ONCE):
                part = missing[start : start + _AT_ONCE]
                made |= zip(part, self._compute([wanted[key] for key in part]), strict=True)
            self._computed += len(missing)
            for key, states in made.items():
                self._tiers.put(key, states)
        if self._files is not None:
            for key in missing:
                self._files.write(key, made[key])
        found |= made
        return Found(tuple(found[key] for key in keys), len(missing))

    @torch.inference_mode()
    def _compute(self, images: Sequence[View]) -> list[ImageKV]:
        pixels = self._processor.pixel_values(images).to(self.encoder.device, self._model.dtype)
        return self.encoder.compute(
            self._model.get_image_features(pixels).pooler_output.to(self._model.dtype)
        )


def store_if_possible(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    tokens: int,
    limits: StoreLimits | None = None,
    shared: ImageStore | None = None,
) -> ImageStore | None:
    """A store for dialogues of up to `tokens`: the `shared` one, or a new one within `limits`.

    None, with the reason in the log, if there cannot be one. Raises `ValueError` if the shared one is another model's.
    """
    try:
        store = shared or ImageStore(model, processor, limits)
    except CannotReuseKV as reason:
        logger.info("images are read anew in each dialogue: %s", reason)
        return None
    if not store.serves(model):
        raise ValueError("the image store is another model's; make one with this model and this processor")
    tokens = longest_dialogue(model.config, tokens)
    if store.reach < tokens:
        logger.info(
            "images are read anew in each dialogue: this decoder's can be kept in dialogues of at most %d"
            " tokens, and up to %d are allowed",
            store.reach,
            tokens,
        )
        return None
    return store


_AS_WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_SAMPLED = 256  # numbers of each tensor
_LABELS = {"_name_or_path", "architectures", "auto_map", "processor_class", "transformers_version"}
"""What saving and loading write into settings, and what changes nothing."""
_FORM = 3  # of what is stored under a fingerprint, and of how images are read


def image_fingerprint(model: PreTrainedModel, processor: ProcessorMixin) -> str:
    """Covers the way from an image's bytes to its keys and values: preprocessing, encoder, projector, decoder.

    Of each tensor the exact sum of its bits and a sample of them count: reading 7 billion weights takes a
    second or two, where hashing them would take half a minute. Weights that are not in memory (offloaded, or
    partitioned over processes) cannot be compared: then the fingerprint is this object's alone.
    """
    known = hashlib.sha256()
    parts = (processor.image_processor, model.config.vision_config, model.config.get_text_config())
    settings: list[Any] = [
        {name: value for name, value in part.to_dict().items() if name not in _LABELS} for part in parts
    ]
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
    bits = flat.view(_AS_WHOLE_NUMBERS[flat.element_size()])
    step = max(1, bits.numel() // _SAMPLED)
    found = torch.cat([bits.sum(dtype=torch.int64)[None], bits[::step].to(torch.int64)])
    return found.cpu().numpy().tobytes()
