"""Who sees whom under multi-modal causal attention: made once per forward, shared by all layers.

The text tokens of a batch are taken together into one row, so are its image tokens. Then each text token sees,
of the text and of the images, the keys between two borders: those of its conversation that stand before it.
Two pairs of numbers for each text token say everything, and kernels differ only in what they make of them.
All is tensor arithmetic without a loop over tokens; nothing waits for the device where the number of image
tokens is known beforehand.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import torch

from .mmca_blocks import BlockMask, band_blocks
from .mmca_masked import MaskedLayout, build_masked_layout
from .mmca_plan import Band, Plan, make_plan


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
        """For copies: without what was found out about this one, addresses above all."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def is_causal(self) -> bool:
        """Whether this is plain causal attention: text alone, a conversation in each row, no padding."""
        return self.whole and not self.image_keys.numel() and self.queries == self.kinds.shape[1]

    @cached_property
    def plan(self) -> Plan:
        """Cut into pieces for kernels without masks."""
        return make_plan(self.rows, self.text, self.image)

    @cached_property
    def text_rows(self) -> int:
        """T, the number of text queries."""
        return self.rows.numel()

    @cached_property
    def other_rows(self) -> int:
        """The number of the other queries."""
        return self.others.numel()

    @cached_property
    def image_top(self) -> int:
        """The first of the rows that sees an image; their number where none does."""
        return int((self.image.stop == self.image.start).cumprod(0).sum())

    @cached_property
    def text_alone(self) -> bool:
        """Whether all queries are text, and no image is among the keys."""
        return not self.other_rows and not self.image_keys.numel()

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Where a CPU's memory has rows, others, own, text and image keys, and the borders of both bands."""
        places = self.rows, self.others, self.own, self.text_keys, self.image_keys
        borders = self.text.start, self.text.stop, self.image.start, self.image.stop
        for each in places + borders:
            if each.dtype != torch.long or not each.is_contiguous() or (each.numel() and each[-1] < 0):
                raise ValueError(
                    "a layout's places and borders must be whole numbers in order; is image_tokens right?"
                )
        return tuple(each.data_ptr() for each in places + borders)

    @cached_property
    def own_are_images(self) -> bool:
        """Whether the queries without a softmax are the image tokens, all of them and no padding."""
        same = self.own.shape == self.image_keys.shape
        return same and (self.own.is_meta or torch.equal(self.own, self.image_keys))

    @cached_property
    def text_blocks(self) -> BlockMask:
        """What the rows see of the text, in blocks for FlexAttention."""
        return band_blocks(self.text, self.text_keys.numel())

    @cached_property
    def image_blocks(self) -> BlockMask:
        """What the rows see of the images, in blocks for FlexAttention."""
        return band_blocks(self.image, self.image_keys.numel())

    @cached_property
    def conversations(self) -> tuple[torch.Tensor, int]:
        """Where the text of each conversation begins, and the last ends, [C + 1] int32; and the longest's length."""
        begins = self.text.start.unique_consecutive()
        borders = torch.cat([begins, begins.new_tensor([self.rows.numel()])]).int()
        return borders, int(borders.diff().max())

    @cached_property
    def masked(self) -> MaskedLayout:
        """The same in padded rows with masks, which pays for short rows."""
        keys = self.kinds.shape[1]
        places = torch.arange(self.kinds.numel(), device=self.kinds.device).view_as(self.kinds)
        asking = places[:, keys - self.queries :, None]  # [B, Q, 1]
        seen = (places[:, None] <= asking) & (places[:, None] >= self.first[:, keys - self.queries :, None])
        if self.valid is not None:
            seen &= self.valid[:, None] & self.valid[:, keys - self.queries :, None]
        return build_masked_layout(seen[:, None], self.kinds)

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
    sizes = [None] * 4
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
