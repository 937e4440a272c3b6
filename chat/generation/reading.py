"""Dialogues as far as a decoder has read them, side by side: the next forward reads only what is new in each.

Two ways with one face. `WholeDialogues`: text and images go through the decoder together, in their order, as every
attention can. `chat.image_kv.reading.CachedImageReading`: text alone goes through it, over images out of a store.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.processing_utils import ProcessorMixin

from chat.images import View


@dataclass(frozen=True, eq=False)
class Prompt:
    """A dialogue to read: `is_image` [S] marks the tokens of the `images` among the `ids` [S]; a tile counts as one."""

    ids: np.ndarray
    is_image: np.ndarray
    images: tuple[View, ...] = ()

    def until(self, tokens: int) -> "Prompt":
        """The first `tokens`, and the images among them."""
        within = int(self.is_image[:tokens].sum()) * len(self.images) // max(int(self.is_image.sum()), 1)
        return Prompt(self.ids[:tokens], self.is_image[:tokens], self.images[:within])


@dataclass
class Work:
    """What went through the model: tokens through the decoder, those of images among them, and images."""

    tokens: int = 0
    image_tokens: int = 0
    encoded_images: int = 0


@dataclass(frozen=True, eq=False)
class RowImages:
    """The images that were read of a row: how many, and where they stand beside the text, their keys and values
    [1, Hkv, I, D] for each layer."""

    count: int = 0
    keys: tuple[torch.Tensor, ...] = ()
    values: tuple[torch.Tensor, ...] = ()


class Reading(ABC):
    """N dialogues in one cache, flush right; one that is empty to begin with.

    A read that fails, or is interrupted, leaves it as it was. Nothing but `read` and `cut` changes it; rows are taken
    out and put together by copies.
    """

    starts_are_shared = True
    """Whether rows may go on from a copy of one row that was read before."""

    def __init__(self, model: PreTrainedModel, size: int = 1) -> None:
        self._model = model
        self._cache = growing_cache()
        # [N, T]: a row's tokens, among those that fill up shorter rows
        self._real = np.zeros((size, 0), bool)
        self._images = [RowImages()] * size

    @property
    def size(self) -> int:
        """N."""
        return len(self._images)

    @abstractmethod
    def _read(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, np.ndarray, list[RowImages], Work]:
        """As `read`; also which of the new tokens are real [N, Q], and the rows' images after it."""

    @abstractmethod
    def covered(self, is_image: np.ndarray) -> int:
        """How many of a dialogue's tokens [S] have been read, where there is one row."""

    @abstractmethod
    def cut(self, is_image: np.ndarray) -> None:
        """Forget all tokens but as many as `is_image` [tokens] has, where there is one row."""

    @torch.inference_mode()
    def read(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, Work]:
        """Read what is new of N dialogues; the logits [N, V] of what follows their last tokens, and what it took."""
        try:
            logits, real, images, work = self._read(prompts)
        except BaseException:
            self._crop(self._real.shape[1])
            raise
        self._real, self._images = np.concatenate([self._real, real], axis=1), images
        return logits, work

    def rows(self, numbers: Sequence[int]) -> "Reading":
        """These rows in a reading of their own; the same number may come several times."""
        return self._gathered([(self, numbers)])

    def beside(self, other: "Reading") -> "Reading":
        """The rows of this reading, and those of another behind them."""
        return self._gathered([(self, range(self.size)), (other, range(other.size))])

    @torch.inference_mode()
    def _gathered(self, parts: "Sequence[tuple[Reading, Sequence[int]]]") -> "Reading":
        found = copy.copy(self)
        found._cache = growing_cache()
        found._images = [part._images[number] for part, numbers in parts for number in numbers]
        used = [part._real[list(numbers)].any(axis=0) for part, numbers in parts]  # [T] of each part
        length = max(int(each.sum()) for each in used)
        real = [
            part._real[list(numbers)][:, columns]
            for (part, numbers), columns in zip(parts, used, strict=True)
        ]
        found._real = np.concatenate([np.pad(each, ((0, 0), (length - each.shape[1], 0))) for each in real])
        for layer in range(len(self._cache.layers)):
            keys, values = (
                torch.cat(
                    [
                        F.pad(each, (0, 0, length - each.shape[2], 0))
                        for (part, numbers), columns in zip(parts, used, strict=True)
                        for each in [_taken(getattr(part._cache.layers[layer], which), numbers, columns)]
                    ]
                )
                for which in ("keys", "values")
            )
            found._cache.update(keys, values, layer)
        return found

    def _crop(self, length: int) -> None:
        """Forget all columns but the first of the cache, also where its layers are uneven."""
        for layer in self._cache.layers:
            if surplus := layer.get_seq_length() - length:
                layer.crop(-surplus)
        self._real = self._real[:, :length]


def _taken(states: torch.Tensor, rows: Sequence[int], columns: np.ndarray) -> torch.Tensor:
    """Rows and columns of states [N, Hkv, T, D]: copies only where some are left out."""
    if list(rows) != list(range(len(states))):
        states = states[torch.tensor(list(rows), device=states.device)]
    first = int(columns.argmax()) if len(columns) else 0
    if columns[first:].all():
        return states[:, :, first:]
    return states[:, :, torch.from_numpy(columns).to(states.device)]


class WholeDialogues(Reading):
    """Text and images go through the decoder together, in their order."""

    starts_are_shared = False

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, size: int = 1) -> None:
        super().__init__(model, size)
        self._processor = processor

    def _read(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, np.ndarray, list[RowImages], Work]:
        read = self._real.sum(axis=1)
        most = max(len(prompt.ids) - known for prompt, known in zip(prompts, read, strict=True))
        ids = np.zeros((len(prompts), most), np.int64)
        real = np.zeros((len(prompts), most), bool)
        is_image = np.zeros((len(prompts), self._real.shape[1] + most), bool)
        for row, (prompt, known) in enumerate(zip(prompts, read, strict=True)):
            new = len(prompt.ids) - known
            ids[row, most - new :], real[row, most - new :] = prompt.ids[known:], True
            is_image[row, is_image.shape[1] - len(prompt.ids) :] = prompt.is_image
        mask = np.concatenate([self._real, real], axis=1)
        images = [
            image
            for prompt, known in zip(prompts, self._images, strict=True)
            for image in prompt.images[known.count :]
        ]
        image_inputs, encoded = self._encoder_inputs(images)
        device = self._model.device
        output = self._model(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device, torch.long),
            mm_token_type_ids=torch.from_numpy(is_image).to(device, torch.long),
            cache=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **image_inputs,
        )
        work = Work(int(real.sum()), int(is_image[:, -most:].sum()), encoded)
        return output.logits[:, -1], real, [RowImages(len(prompt.images)) for prompt in prompts], work

    def _encoder_inputs(self, images: Sequence[View]) -> tuple[dict[str, Any], int]:
        """The model's arguments for images: pixels, or, where an image comes twice, the features of each, so that it
        goes through the encoder once. And how many do."""
        number = {digest: place for place, digest in enumerate(dict.fromkeys(each.digest for each in images))}
        if not number:
            return {}, 0
        different = list({each.digest: each for each in images}.values())
        pixels = self._processor.pixel_values(different).to(self._model.device, self._model.dtype)
        if len(different) == len(images):
            return {"pixel_values": pixels}, len(different)
        features = self._model.get_image_features(pixels, return_dict=True)
        features.pooler_output = features.pooler_output[[number[each.digest] for each in images]]
        return {"mm_encoder_outputs": {"image": features}}, len(different)

    def covered(self, is_image: np.ndarray) -> int:
        return self._real.shape[1]

    def cut(self, is_image: np.ndarray) -> None:
        self._crop(len(is_image))
        self._images = [RowImages(int(is_image.sum()) // self._processor.image_seq_length)]


class ImageKVStore(Protocol):
    """Keeps the keys and values of images for one model: `chat.image_kv.store.ImageStore`."""

    def reading(self, size: int = 1) -> Reading: ...


class GrowingLayer(DynamicLayer):
    """One layer's keys and values [B, H, S, D], at the start of a longer piece of memory.

    When that is full its size doubles: each token is copied a fixed number of times, however long the text.
    """

    _least = 64

    def __init__(self) -> None:
        super().__init__()
        self._memory: tuple[torch.Tensor, ...] = ()  # of keys and values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, H, Q, D]; returns all keys and values, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        length = used + key_states.shape[2]
        if not self._memory or self._memory[0].shape[2] < length:
            self._grow(key_states, value_states, max(self._least, 2 * length))
        for memory, new in zip(self._memory, (key_states, value_states), strict=True):
            memory[:, :, used:length] = new
        self.keys, self.values = (memory[:, :, :length] for memory in self._memory)
        return self.keys, self.values

    def _grow(self, key_states: torch.Tensor, value_states: torch.Tensor, size: int) -> None:
        """Memory for `size` tokens like these, with what is there."""
        used = self.get_seq_length()
        grown = tuple(new.new_empty(*new.shape[:2], size, new.shape[3]) for new in (key_states, value_states))
        if used:
            for memory, kept in zip(grown, (self.keys, self.values), strict=True):
                memory[:, :, :used] = kept
        self._memory = grown


def growing_cache() -> Cache:
    """An empty cache of such layers, for any number of them."""
    return Cache(layer_class_to_replicate=GrowingLayer)
