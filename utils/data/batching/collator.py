"""Samples to a padded batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from utils.data.batching.sample import IGNORED_LABEL, Batch, Sample, joined


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
