"""What goes from data to the trainer: `Sample`, encoded, and `Batch`, which `Collator` makes of several samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from utils.data.bad_records import BadRecord, Origin, RecordPlace

IGNORED_LABEL = -100
"""The label of a token that is not learned: the `ignore_index` of torch's cross entropy."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What a row of a batch is made of: an encoded conversation, or several packed; S tokens, n images, T turns.

    `labels` repeat the ids of answers and of the EOS that closes each, and are `IGNORED_LABEL` elsewhere.
    `turn_ends[t]` is the number of tokens up to the end of turn t. Images are in order of appearance, as pixels or as
    the encoder's features; without pixels None, without any features of length 0.
    """

    input_ids: np.ndarray  # [S] int64
    labels: np.ndarray  # [S] int64
    mm_token_type_ids: np.ndarray  # [S] int64, 0 text, 1 image
    turn_ends: np.ndarray  # [T] int64
    pixel_values: torch.Tensor | None = None  # [n, 3, H, W]
    image_features: torch.Tensor | None = None  # [n, S', D], ready in place of pixels
    position_ids: np.ndarray | None = None  # [S], where packed: they restart with each conversation
    origins: tuple[Origin, ...] = ()  # of its conversations that teach something, where they are known
    bad: tuple[BadRecord, ...] = ()  # found in making it

    def of(self, places: Sequence[RecordPlace]) -> "Sample":
        """The same, of a conversation that is known to be made of these records."""
        supervised = int((self.labels != IGNORED_LABEL).sum())
        return replace(self, origins=(Origin(tuple(places), supervised),) if places and supervised else ())

    def first_tokens(self, end: int, tokens_per_image: int) -> "Sample":
        """The tokens of a conversation before `end`, with their images."""
        images = int(self.mm_token_type_ids[:end].sum()) // tokens_per_image
        pixels, features = self.pixel_values, self.image_features
        return replace(
            self,
            input_ids=self.input_ids[:end],
            labels=self.labels[:end],
            mm_token_type_ids=self.mm_token_type_ids[:end],
            turn_ends=self.turn_ends[self.turn_ends <= end],
            pixel_values=pixels[:images] if pixels is not None and images else None,
            image_features=None if features is None else features[:images],
        )

    def first_turns(self, turns: int, tokens_per_image: int) -> "Sample":
        """The first turns of a conversation, with their images."""
        first = self.first_tokens(int(self.turn_ends[turns - 1]) if turns else 0, tokens_per_image)
        return first.of([place for origin in self.origins for place in origin.places])


@dataclass(frozen=True, eq=False)
class Batch:
    """The keyword arguments that the model is called with, and what is known of them; see `Collator`."""

    inputs: dict[str, Any]
    origins: tuple[Origin, ...] = ()  # of all conversations in which something is learned, in order
    bad: tuple[BadRecord, ...] = ()  # found in making it
    images: int = 0

    def pin_memory(self) -> "Batch":
        """For data loaders: the same in memory from which a GPU copies while it computes."""
        return replace(self, inputs=_pinned(self.inputs))


def joined(images: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Pixels or features of several samples, one after the other; None where no sample has any."""
    given = [each for each in images if each is not None]
    filled = [each for each in given if len(each)]
    return torch.cat(filled) if filled else next(iter(given), None)


def _pinned(value: Any) -> Any:
    if isinstance(value, dict):
        return type(value)({name: _pinned(each) for name, each in value.items()})
    return value.pin_memory() if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True)
class Collator:
    """Pad samples to a common length, a multiple of `pad_to_multiple_of` (tensor cores like eights).

    The inputs are `input_ids`, `attention_mask`, `mm_token_type_ids`, `labels`, each [B, S] int64; `pixel_values`
    [images of the batch in order, 3, H, W], unless no sample has an image; `image_tokens` and `supervised_tokens`
    (int), so that the model need not wait for a GPU to count them. Where samples bring the encoder's features,
    `mm_encoder_outputs` stands in the place of pixels, in a batch without images too.

    Packed samples: `position_ids` in the place of `attention_mask`, which would not tell conversations apart. A token
    of padding is at position 0, and so a conversation by itself.
    """

    pad_token_id: int
    padding_side: Literal["left", "right"] = "right"
    pad_to_multiple_of: int = 8

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        lengths = [len(sample.input_ids) for sample in samples]
        width = -(-max(lengths) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        packed = samples[0].position_ids is not None
        filled = {
            "input_ids": self.pad_token_id,
            "position_ids" if packed else "attention_mask": 0,
            "mm_token_type_ids": 0,
            "labels": IGNORED_LABEL,
        }
        arrays = {name: np.full((len(lengths), width), value) for name, value in filled.items()}  # [B, S]
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            place = slice(0, length) if self.padding_side == "right" else slice(width - length, width)
            for name, array in arrays.items():
                array[row, place] = 1 if name == "attention_mask" else getattr(sample, name)
        inputs: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        inputs["image_tokens"] = int(arrays["mm_token_type_ids"].sum())
        inputs["supervised_tokens"] = int((arrays["labels"][:, 1:] != IGNORED_LABEL).sum())
        pixels = joined([sample.pixel_values for sample in samples])
        features = joined([sample.image_features for sample in samples])
        if pixels is not None:
            inputs["pixel_values"] = pixels
        if features is not None:
            inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(last_hidden_state=features)}
        return Batch(
            inputs,
            origins=tuple(origin for sample in samples for origin in sample.origins),
            bad=tuple(found for sample in samples for found in sample.bad),
            images=sum(len(images) for images in (pixels, features) if images is not None),
        )
