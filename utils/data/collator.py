"""Encoded conversations to a padded batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from utils.data.encode import IGNORED_LABEL, Encoded


@dataclass(frozen=True)
class Collator:
    """Pad rows to a common length, a multiple of `pad_to_multiple_of` (tensor cores like eights).

    Returns `input_ids`, `attention_mask`, `mm_token_type_ids`, `labels`, each [B, S] int64, and, unless no
    conversation has an image, `pixel_values` [images of the batch in order, 3, H, W]. `image_tokens` and
    `supervised_tokens` say how many there are (int), so that the model need not wait for a GPU to count them.

    Two lists beside them are not for the model: where rows know their `origins`, all of the batch in order
    (`Origin`); and where there are any, `bad`: the bad records that were found in making the batch.

    Rows with `position_ids` are packed: these stand in the place of `attention_mask`, which would not tell
    conversations apart. A token of padding is at position 0, and so a conversation by itself.
    """

    pad_token_id: int
    padding_side: Literal["left", "right"] = "right"
    pad_to_multiple_of: int = 8

    def __call__(self, conversations: Sequence[Encoded]) -> dict[str, Any]:
        lengths = [len(conversation.input_ids) for conversation in conversations]
        width = -(-max(lengths) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        packed = hasattr(conversations[0], "position_ids")
        filled = {
            "input_ids": self.pad_token_id,
            "position_ids" if packed else "attention_mask": 0,
            "mm_token_type_ids": 0,
            "labels": IGNORED_LABEL,
        }
        arrays = {name: np.full((len(lengths), width), value) for name, value in filled.items()}  # [B, S]
        for row, (conversation, length) in enumerate(zip(conversations, lengths, strict=True)):
            place = slice(0, length) if self.padding_side == "right" else slice(width - length, width)
            arrays["input_ids"][row, place] = conversation.input_ids
            if packed:
                arrays["position_ids"][row, place] = conversation.position_ids
            else:
                arrays["attention_mask"][row, place] = 1
            arrays["mm_token_type_ids"][row, place] = conversation.mm_token_type_ids
            arrays["labels"][row, place] = conversation.labels
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        batch["image_tokens"] = int(arrays["mm_token_type_ids"].sum())
        batch["supervised_tokens"] = int((arrays["labels"][:, 1:] != IGNORED_LABEL).sum())
        pixels = [each.pixel_values for each in conversations if each.pixel_values is not None]
        if pixels:
            batch["pixel_values"] = torch.cat(pixels)
        if origins := [origin for each in conversations for origin in getattr(each, "origins", ())]:
            batch["origins"] = origins
        if bad := [found for each in conversations for found in getattr(each, "bad", ())]:
            batch["bad"] = bad
        return batch
