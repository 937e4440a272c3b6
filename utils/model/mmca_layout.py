"""Who sees whom under multi-modal causal attention: made once per forward, shared by all layers.

The text tokens of a batch are taken together into one row, so are its image tokens. Then each text token sees,
of the text and of the images, the keys between two borders: those of its conversation that stand before it.
Two pairs of numbers for each text token say everything, and kernels differ only in what they make of them.
All is tensor arithmetic without a loop over tokens; nothing waits for the device where the number of image
tokens is known beforehand.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Band:
    """Which keys each of T queries sees: those from start [T] up to, without, stop [T]. Both never decrease."""

    start: torch.Tensor
    stop: torch.Tensor

    def to(self, device: torch.device) -> "Band":
        return Band(self.start.to(device), self.stop.to(device))


@dataclass(frozen=True, eq=False)
class Layout:
    """Q queries over K keys of B rows; places are counted through the batch, b * Q + i and b * K + j.

    rows: [T] text queries. others: [B * Q - T] the rest, image tokens and padding, whose result is their own
    value. own: their own keys. text_keys, image_keys: the keys of each kind. text, image: what the rows see
    of these. kinds, valid, first: [B, K] the kind of each key, whether it is no padding, and the place of the
    first key of its conversation. whole: each row is one conversation without padding.
    """

    rows: torch.Tensor
    others: torch.Tensor
    own: torch.Tensor
    text_keys: torch.Tensor
    image_keys: torch.Tensor
    text: Band
    image: Band
    kinds: torch.Tensor
    valid: torch.Tensor | None
    first: torch.Tensor
    queries: int
    whole: bool

    def __getstate__(self) -> dict[str, object]:
        """For copies: without what kernels have made of this one, addresses of memory above all."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def is_causal(self) -> bool:
        """Whether this is plain causal attention: text alone, a conversation in each row, no padding."""
        return self.whole and not self.image_keys.numel() and self.queries == self.kinds.shape[1]

    def prepared(self, make: Callable[["Layout"], T]) -> T:
        """What a kernel makes of this layout, made once."""
        if make not in self._prepared:
            self._prepared[make] = make(self)
        return self._prepared[make]

    def to(self, device: torch.device) -> "Layout":
        """On another device, where a model is spread over several; moved once to each."""
        if self.rows.device == device:
            return self
        if device not in self._elsewhere:
            moved = {
                field.name: value.to(device) if hasattr(value, "to") else value
                for field in fields(self)
                for value in [getattr(self, field.name)]
            }
            self._elsewhere[device] = Layout(**moved)
        return self._elsewhere[device]

    @cached_property
    def _prepared(self) -> dict[Callable[["Layout"], Any], Any]:
        return {}

    @cached_property
    def _elsewhere(self) -> "dict[torch.device, Layout]":
        return {}


def build_layout(
    kinds: torch.Tensor,
    queries: int,
    valid: torch.Tensor | None = None,
    begins: torch.Tensor | None = None,
    image_tokens: int | None = None,
) -> Layout:
    """The layout of the last Q = `queries` of K keys in each of B rows.

    kinds: [B, K], 0 text and 1 image. valid: bool [B, K], False for padding, or None. begins: bool [B, K],
    True where a conversation begins inside a row, or None. image_tokens: how many image tokens there are in
    all, where that is known without asking the device; padding then stays among the text, seeing itself alone.
    """
    batch, keys = kinds.shape
    is_image = kinds == 1
    is_text = ~is_image
    starts = torch.zeros_like(is_text)
    starts[:, 0] = True
    if begins is not None:
        starts |= begins
    if valid is not None and image_tokens is not None:
        starts |= ~valid
        starts[:, 1:] |= ~valid[:, :-1]
    elif valid is not None:
        is_text, is_image = is_text & valid, is_image & valid
    places = torch.arange(batch * keys, device=kinds.device)
    first = torch.where(starts.flatten(), places, 0).cummax(0).values  # [B * K]
    text_before, image_before = (_before(mask.flatten()) for mask in (is_text, is_image))
    asking = torch.zeros_like(is_text)
    asking[:, keys - queries :] = True
    sizes: list[int | None] = [None] * 4
    if image_tokens is not None:
        rest = batch * keys - image_tokens
        sizes = [rest, image_tokens, rest, image_tokens] if queries == keys else [None] * 4
    text_keys, image_keys, rows, others = (
        _places(mask, size)
        for mask, size in zip((is_text, is_image, is_text & asking, ~is_text & asking), sizes, strict=True)
    )
    before = first[rows]
    return Layout(
        rows=_among_queries(rows, keys, queries),
        others=_among_queries(others, keys, queries),
        own=others,
        text_keys=text_keys,
        image_keys=image_keys,
        text=Band(text_before[before], text_before[rows] + 1),
        image=Band(image_before[before], image_before[rows]),
        kinds=kinds,
        valid=valid,
        first=first.view(batch, keys),
        queries=queries,
        whole=valid is None and begins is None,
    )


def _before(mask: torch.Tensor) -> torch.Tensor:
    """How many are True before each place."""
    counts = mask.long().cumsum(0)
    return counts - mask.long()


def _places(mask: torch.Tensor, size: int | None) -> torch.Tensor:
    """Where a mask is True, counted through the batch; a known size spares the device an answer."""
    mask = mask.flatten()
    if size is None:
        return mask.nonzero()[:, 0]
    return mask.nonzero_static(size=size)[:, 0]


def _among_queries(places: torch.Tensor, keys: int, queries: int) -> torch.Tensor:
    """Places among B * K keys as places among B * Q queries."""
    if keys == queries:
        return places
    row = places.div(keys, rounding_mode="floor")
    return row * queries + places - row * keys - (keys - queries)
