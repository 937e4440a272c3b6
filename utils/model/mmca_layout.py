"""Who sees whom under multi-modal causal attention: made once per forward, shared by all layers.

The text tokens of a batch are taken together into one row, so are its image tokens. Then each text token sees,
of the text and of the images, the keys between two borders: those of its conversation that stand before it.
Two pairs of numbers for each text token say everything, and kernels differ only in what they make of them.
All is tensor arithmetic without a loop over tokens; nothing waits for the device where the number of image
tokens is known beforehand.

A layout is made from what the model's own forward knows (`layout_of_forward`), or, in a stock decoder, from the
decoder's rule (`visibility`). transformers makes a mask once per forward and hands it to every layer; for plain
visibility (causal, with padding or with packed conversations) its rule is kept here instead of its table, so that
nothing grows with the square of the length.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch.nn import functional as F
from transformers import Cache, PreTrainedConfig
from transformers.masking_utils import causal_mask_function, sdpa_mask

from .mmca_masked import MaskedLayout, attend_masked, build_masked_layout

T = TypeVar("T")

_PACKED = "and_masks.<locals>.and_mask"  # transformers' rule for packed conversations, made of two

NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)
"""The decoder's mask where something else says who sees whom: one of four dimensions is taken as it is, and nobody
reads it."""


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

    rows: [T] text queries. passthrough_rows: [B * Q - T] the rest, image tokens and padding, whose result is their
    own value. passthrough_keys: their own keys. text_keys, image_keys: the keys of each kind. text, image: what the
    rows see of these. kinds, valid, first: [B, K] the kind of each key, whether it is no padding, and the place of
    the first key of its conversation. whole: each row is one conversation without padding.
    """

    rows: torch.Tensor
    passthrough_rows: torch.Tensor
    passthrough_keys: torch.Tensor
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
        passthrough_rows=_among_queries(others, keys, queries),
        passthrough_keys=others,
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


def masked_form(layout: Layout) -> MaskedLayout:
    """A layout of borders in padded rows with masks."""
    first = layout.kinds.shape[1] - layout.queries  # the first query, among the keys
    places = torch.arange(layout.kinds.numel(), device=layout.kinds.device).view_as(layout.kinds)
    asking = places[:, first:, None]  # [B, Q, 1]
    seen = (places[:, None] <= asking) & (places[:, None] >= layout.first[:, first:, None])
    if layout.valid is not None:
        seen &= layout.valid[:, None] & layout.valid[:, first:, None]
    return build_masked_layout(seen[:, None], layout.kinds)


class Visibility:
    """The rule of one forward over Q queries and K keys of B rows; lives as long as that forward."""

    def __init__(self, **rule: Any) -> None:
        """rule: the arguments of transformers' mask interface."""
        self._rule = rule
        self._layouts: dict[bool, Layout | MaskedLayout] = {}

    def layout(self, kinds: torch.Tensor, keys: int, joint: bool = False) -> Layout | MaskedLayout:
        """Who sees whom, for the kinds of keys [B, K]; joint: one softmax over both kinds."""
        if joint not in self._layouts:
            rule = self._rule
            if not joint and kinds.shape[1] == keys == rule["kv_length"]:
                kinds = kinds.to(rule["device"]).expand(rule["batch_size"], -1)
                self._layouts[joint] = build_layout(kinds, rule["q_length"], self._valid(), self._begins())
            else:
                self._layouts[joint] = build_masked_layout(self.mask()[..., :keys], kinds[:, -keys:], joint)
        return self._layouts[joint]

    def to(self, device: torch.device, **_kwargs: Any) -> "Visibility":
        """Where a model is spread over devices; layouts are moved by the layer that needs them."""
        return self

    def mask(self) -> torch.Tensor:
        """The table: bool [B, 1, Q, K]."""
        return sdpa_mask(**self._rule, allow_is_causal_skip=False)

    def is_plain(self) -> bool:
        """Whether queries see all that is before them in their conversation; nobody else's rule is guessed."""
        rule = self._rule
        offset = rule.get("q_offset", 0)
        function = rule.get("mask_function", causal_mask_function)
        packed = getattr(function, "__qualname__", "") == _PACKED and not rule.get("use_vmap", False)
        return (
            rule.get("local_size") is None
            and (function is causal_mask_function or packed)
            and isinstance(offset, int)
            and not rule.get("kv_offset", 0)
            and offset + rule["q_length"] == rule["kv_length"]
        )

    def _valid(self) -> torch.Tensor | None:
        """Which keys are no padding, [B, K]; None where all are."""
        padding = self._rule.get("attention_mask")
        if padding is None or (padding.device.type == "cpu" and bool(padding.all())):
            return None
        return padding[:, : self._rule["kv_length"]].bool()

    def _begins(self) -> torch.Tensor | None:
        """Where a conversation begins inside a row, [B, K]: its first token does not see the one before."""
        function: Callable = self._rule.get("mask_function", causal_mask_function)
        if function is causal_mask_function:
            return None
        rows = torch.arange(self._rule["batch_size"], device=self._rule["device"])[:, None]
        places = torch.arange(1, self._rule["kv_length"], device=self._rule["device"])[None]
        goes_on = function(rows, 0, places, places - 1)  # [B, K - 1]
        return torch.nn.functional.pad(~goes_on, (1, 0))


class Kernels:
    """What computes attention under a layout: torch's causal attention where it is no more than that, else `masked`.

    `mmca_kernels` puts faster ones in this place. They stay behind when this code travels in a checkpoint.
    """

    def prepare(
        self, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, layout: Layout | None = None
    ) -> None:
        """Get ready before the decoder's layers are entered; config: the decoder's."""
        if layout is not None and not layout.is_causal:
            layout.prepared(masked_form)

    def attend(
        self,
        layout: Layout,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        dropout: float,
        gate: torch.Tensor | None,
    ) -> torch.Tensor:
        """query [B, H, Q, D], key and value [B, Hkv, K, D], gate [H] on the images' term -> [B, Q, H, D]."""
        if layout.is_causal and not dropout:
            grouped = query.shape[1] != key.shape[1]
            out = F.scaled_dot_product_attention(
                query, key, value, scale=scaling, is_causal=True, enable_gqa=grouped
            )
            return out.transpose(1, 2).contiguous()
        return attend_masked(layout.prepared(masked_form), query, key, value, scaling, dropout, gate)


_in_use = [Kernels()]


def kernels() -> Kernels:
    """Those in use."""
    return _in_use[-1]


def use_kernels(others: Kernels) -> None:
    """Let others compute from now on."""
    _in_use[:] = [others]


def visibility(*, allow_is_causal_skip: bool = True, **rule: Any) -> Visibility | torch.Tensor:
    """transformers' mask interface: the rule where it is plain, else the table [B, 1, Q, K].

    The table at once: a static cache moves the offsets in it as soon as the first layer has been computed.
    """
    rule.setdefault("device", "cpu")
    known = Visibility(**rule)
    if not known.is_plain() or torch.compiler.is_compiling():
        return known.mask()
    config, device, dtype = rule.get("config"), torch.device(rule["device"]), rule.get("dtype")
    if dtype is not None and getattr(config, "_attn_implementation", "") == "mmca":
        kernels().prepare(config, device, dtype)  # here, for the layers that come may be checkpointed
    return known


def layout_of_forward(
    config: PreTrainedConfig,
    kinds: torch.Tensor,
    embedded: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
    image_tokens: int | None,
) -> Layout | None:
    """The decoder's argument `mmca_layout`, or None where the decoder's own rule has to be asked.

    Made before the decoder is entered: no mask is made, and where the number of image tokens follows from the images,
    nothing has to be asked of a GPU.

    config: the decoder's. kinds: [B, K]. embedded: [B, Q, D]. attention_mask: [B, K] or None; then position_ids
    [B, Q] that restart are conversations side by side. image_tokens: among the K keys, where it is known.
    """
    queries = embedded.shape[1]
    cached = 0 if cache is None else cache.get_seq_length()
    if (
        config._attn_implementation != "mmca"
        or torch.compiler.is_compiling()
        or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        or (getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None))
        or (cache is not None and cache.is_compileable)
        or kinds.shape[1] != cached + queries
        or (attention_mask is not None and attention_mask.shape != kinds.shape)
    ):
        return None
    valid = begins = None
    on_cpu = kinds.device.type == "cpu"
    if attention_mask is not None:
        valid = attention_mask.to(kinds.device).bool()
        valid = None if on_cpu and bool(valid.all()) else valid
    elif position_ids is not None and cache is None:
        steps = position_ids.to(kinds.device).expand(kinds.shape[0], -1).diff(dim=1)
        begins = torch.nn.functional.pad(steps != 1, (1, 0))
        begins = None if on_cpu and not bool(begins.any()) else begins
    known = image_tokens if not on_cpu and not cached else None
    layout = build_layout(kinds, queries, valid, begins, known)
    kernels().prepare(config, embedded.device, embedded.dtype, layout)
    return layout


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
