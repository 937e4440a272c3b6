"""Attention of text over images whose keys and values were computed earlier: multi-modal causal attention without a
single image token in the forward.

An image token attends to itself only, so its keys and values in every layer follow from the image and its
position. What is left to compute is text: each text token reads the text before it, in a cache of its own, and
the images before it, here. The order of keys need not be the order of positions; who sees what is said by
counts: a text token sees as many image tokens, of its row's in their order, as stand before it.

The decoder takes a `CachedImageKV` as the argument `image_kv`, which reaches every layer's attention
(`utils.model.mmca`):

    decoder(inputs_embeds=text, position_ids=places, cache=cache, attention_mask=NO_MASK, image_kv=cached)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class SharedImages:
    """The images that some rows of a batch have: one image token after the other, I of them.

    keys, values: a tensor [1, Hkv, I, D] for each layer. rows: [n] the rows of the batch, or None for all. seen: [n, Q]
    how many image tokens each new token sees, or None where each sees all I.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    rows: torch.Tensor | None = None
    seen: torch.Tensor | None = None


class CachedImageKV:
    """The images of B rows, and what Q new text tokens see of them and of T text tokens (cached and new).

    images: each row stands in one of these at most. text_mask: bool [B or 1, 1, Q, T] (see `causal_mask`), or None
    where each sees all T, as a single new token does.
    """

    def __init__(self, images: Sequence[SharedImages] = (), text_mask: torch.Tensor | None = None) -> None:
        self._images = [(each, *_masks(each)) for each in images]
        self._text_mask = text_mask

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One layer's attention: query [B, H, Q, D], text keys and values [B, Hkv, T, D] -> [B, Q, H, D].

        gate: [H] on what is read of images.
        """
        out = _read(query, key, value, self._text_mask, scaling)
        for images, mask, blank in self._images:
            rows = None if images.rows is None else images.rows.to(query.device)
            asking = query if rows is None else query[rows]
            term = _read(asking, images.keys[layer], images.values[layer], mask, scaling)
            if blank is not None:
                term = term.masked_fill(blank.to(term.device), 0.0)
            if gate is not None:
                term = term * gate.to(term.dtype)[:, None, None]
            out = out + term if rows is None else out.index_add(0, rows, term)
        return out.transpose(1, 2).contiguous()


def _masks(images: SharedImages) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Which image tokens each new token sees, bool [n, 1, Q, I], and which sees none, bool [n, 1, Q, 1]."""
    if images.seen is None:
        return None, None
    places = torch.arange(images.keys[0].shape[2], device=images.seen.device)
    blank = (images.seen == 0)[:, None, :, None]
    mask = places < images.seen[:, None, :, None]
    return mask | blank, blank  # a softmax needs a key; its result is taken out


def causal_mask(rows: int, keys: int, device: torch.device) -> torch.Tensor:
    """The last `rows` of `keys` tokens, each seeing those up to itself: bool [1, 1, rows, keys]."""
    return torch.ones(rows, keys, dtype=torch.bool, device=device).tril(keys - rows)[None, None]


class ImageOnlyAttention:
    """In place of `CachedImageKV` where nothing but image tokens is read: each attends to itself."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The values are the result: value [B, Hkv, S, D] -> [B, S, H, D]."""
        groups = query.shape[1] // value.shape[1]
        return value.repeat_interleave(groups, dim=1).transpose(1, 2).contiguous()


def _read(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """One softmax: query [B, H, Q, D], keys and values [G, Hkv, K, D], mask [B or 1, 1, Q, K] -> [B, H, Q, D].

    Query heads, and rows of the batch, that share keys become rows of one head, so that keys and values are read
    once and never repeated.
    """
    batch, heads, rows, width = query.shape
    sets, shared = keys.shape[:2]
    together, groups = batch // sets, heads // shared
    query = query.reshape(sets, together, shared, groups * rows, width).transpose(1, 2)
    if mask is not None:
        mask = mask.to(query.device)
        if together > 1:
            mask = mask.expand(batch, -1, -1, -1)
        mask = mask.repeat(1, 1, groups, 1)
        if together > 1:
            mask = mask.view(sets, 1, together * groups * rows, -1)
    asking = query.reshape(sets, shared, together * groups * rows, width)
    out = F.scaled_dot_product_attention(asking, keys, values, attn_mask=mask, scale=scaling)
    out = out.view(sets, shared, together, groups * rows, width).transpose(1, 2)
    return out.reshape(batch, heads, rows, width)
