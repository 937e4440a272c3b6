"""Multi-modal causal attention (MMCA) for any decoder that uses transformers' attention interface.

For a query at position i, with T(i) the text positions <= i and I(i) the image positions <= i of the same
conversation:

- an image token attends to itself only: out_i = v_i;
- a text token: out_i = softmax over T(i) applied to v, plus softmax over I(i) applied to v. The two are
  normalised separately and summed, not renormalised. Where I(i) is empty its term is exactly zero.

Source: Yao et al., "DeepSpeed-VisualChat", 2023 (arXiv:2309.14327), section 4.1.

Importing this module registers two attention implementations. "mmca" is the above; "cross" has the same
visibility, but one joint softmax over T(i) and I(i): a baseline with the same weights. Both run a stock
decoder:

    config = LlamaConfig(..., attn_implementation="mmca")
    decoder(inputs_embeds=x, attention_mask=m, mm_token_type_ids=t)  # m, t [B, K]: all keys, also cached

The kinds t (0 text, 1 image) are required: leaving them out raises, because an image read as text would go
unnoticed. Text alone is t = 0 everywhere. Several conversations in one row are told apart as transformers
does it: `attention_mask=None`, `position_ids` that restart with each conversation, and `use_cache=False`.

The layout (who sees whom) is made once per forward and shared by all layers; the kernels read nothing else.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

IMPLEMENTATIONS = {"mmca": "mmca", "cross": "cross", "causal": "sdpa"}
"""The decoder's `attn_implementation` for each attention of a VisualChat configuration."""

_LAYOUT = "_mmca_layout"  # a mask carries the layout made from it, so both live for one forward


@dataclass(frozen=True, eq=False)
class Sight:
    """What one softmax reads: `mask` [B, 1, Q, K] is True for the keys of each row.

    A row with nothing to read gets all keys (a softmax needs one) and is marked in `blank` [B, 1, Q, 1], so
    that its result can be replaced by zeros: no NaN, and no gradient.
    """

    mask: torch.Tensor
    blank: torch.Tensor

    @classmethod
    def of(cls, visible: torch.Tensor) -> "Sight":
        blank = ~visible.any(dim=-1, keepdim=True)  # [B, 1, Q, 1]
        return cls(mask=visible | blank, blank=blank)


@dataclass(frozen=True, eq=False)
class Layout:
    """Who sees whom in one forward, for Q queries over K keys of B rows."""

    everything: Sight  # text and image keys before each query: the joint softmax
    text: Sight
    image: Sight | None  # None: no key of the batch belongs to an image
    query_is_image: torch.Tensor | None  # [B, 1, Q, 1]; None: no query does
    own_key: torch.Tensor  # [B, 1, Q, 1], the key that stands at the query's own position


def build_layout(visible: torch.Tensor, kinds: torch.Tensor) -> Layout:
    """Split a decoder's own visibility by the kind of key.

    visible: bool [B, 1, Q, K], causal, without padding and without other conversations.
    kinds: [B, K], 0 text and 1 image; shorter than K where a static cache has empty places at its end.
    """
    batch, _, queries, keys = visible.shape
    covered = kinds.shape[1]
    is_image = kinds.to(visible.device) == 1
    if covered < keys:
        if visible[..., covered:].any():
            raise ValueError(
                f"mm_token_type_ids cover {covered} keys, but attention reads {keys}; pass the kind of every"
                " key, those in the cache too (the whole [B, K] tensor at every step of generation)"
            )
        is_image = F.pad(is_image, (0, keys - covered))
        last = torch.arange(keys, device=visible.device)
        own_key = (visible * last).amax(dim=-1, keepdim=True)  # [B, 1, Q, 1]
    else:
        last = torch.arange(keys - queries, keys, device=visible.device)
        own_key = last.view(1, 1, queries, 1).expand(batch, 1, queries, 1)
    everything = Sight.of(visible)
    if not is_image.any():
        return Layout(everything, text=everything, image=None, query_is_image=None, own_key=own_key)

    image_keys = is_image[:, None, None, :]  # [B, 1, 1, K]
    query_is_image = image_keys.expand(batch, 1, queries, keys).gather(-1, own_key)  # [B, 1, Q, 1]
    return Layout(
        everything,
        text=Sight.of(visible & ~image_keys),
        image=Sight.of(visible & image_keys),
        query_is_image=query_is_image if query_is_image.any() else None,
        own_key=own_key,
    )


def layout_of(
    module: nn.Module,
    mask: torch.Tensor | None,
    kinds: torch.Tensor | None,
    keys: int,
    sliding_window: int | None = None,
) -> Layout:
    """The layout of this forward, made by the first layer that asks and kept on the mask for the others.

    The decoder's own visibility counts: under a sliding window, both softmaxes read within it.
    """
    if mask is None or mask.dtype != torch.bool or mask.ndim != 4:
        found = "none" if mask is None else f"{mask.dtype} of shape {list(mask.shape)}"
        raise ValueError(
            f"MMCA needs a boolean [B, 1, Q, K] mask and got {found}: the decoder around"
            f" {type(module).__name__} does not make masks through AttentionMaskInterface; use another one"
        )
    if kinds is None:
        raise ValueError(
            "MMCA needs mm_token_type_ids [B, K] (0 text, 1 image, one for every key) as an argument of the"
            " decoder's forward; pass zeros where there is no image"
        )
    known = getattr(mask, _LAYOUT, None)
    if known is not None and known[0] is kinds:
        return known[1]
    if kinds.shape[1] > keys and sliding_window is None:
        raise ValueError(
            f"mm_token_type_ids cover {kinds.shape[1]} keys, but attention reads only {keys}; pass [B, K]"
            " with K = cached + new tokens"
        )
    layout = build_layout(mask[..., :keys], kinds[:, -keys:])  # a sliding cache keeps the last keys
    if not torch.compiler.is_compiling():
        setattr(mask, _LAYOUT, (kinds, layout))
    return layout


def _softmax_over(
    sight: Sight,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """One softmax over what `sight` allows, zero where that is nothing: [B, H, Q, D]."""
    out = F.scaled_dot_product_attention(query, key, value, sight.mask, dropout_p=dropout, scale=scaling)
    return out.masked_fill(sight.blank, 0.0)


def _images_keep_themselves(layout: Layout, out: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Replace the rows of image tokens by their own values."""
    if layout.query_is_image is None:
        return out
    own = layout.own_key.expand(-1, value.shape[1], -1, value.shape[-1])  # [B, H, Q, D]
    return torch.where(layout.query_is_image, value.gather(2, own), out)


def mmca_kernel(
    layout: Layout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """MMCA over query [B, H, Q, D], key and value [B, H, K, D]; returns [B, H, Q, D]."""
    out = _softmax_over(layout.text, query, key, value, scaling, dropout)
    if layout.image is not None:
        out = out + _softmax_over(layout.image, query, key, value, scaling, dropout)
    return _images_keep_themselves(layout, out, value)


def cross_kernel(
    layout: Layout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """MMCA's visibility under one joint softmax; shapes as in `mmca_kernel`."""
    return _images_keep_themselves(
        layout, _softmax_over(layout.everything, query, key, value, scaling, dropout), value
    )


def _as_attention_function(kernel):
    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        mm_token_type_ids: torch.Tensor | None = None,
        sliding_window: int | None = None,
        **_kwargs,
    ) -> tuple[torch.Tensor, None]:
        """transformers' interface: query [B, H, Q, D], key and value [B, Hkv, K, D] -> [B, Q, H, D]."""
        layout = layout_of(module, attention_mask, mm_token_type_ids, key.shape[2], sliding_window)
        groups = query.shape[1] // key.shape[1]
        if groups > 1:  # SDPA's own grouping falls back to its slowest kernel under a mask
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        out = kernel(layout, query, key, value, scaling, dropout)
        return out.transpose(1, 2).contiguous(), None

    return attention


def visibility_mask(*, allow_is_causal_skip: bool = True, **kwargs) -> torch.Tensor:
    """transformers' mask interface: its boolean [B, 1, Q, K] mask, made even where SDPA could do without."""
    return sdpa_mask(**kwargs, allow_is_causal_skip=False)


for _name, _kernel in {"mmca": mmca_kernel, "cross": cross_kernel}.items():
    AttentionInterface.register(_name, _as_attention_function(_kernel))
    AttentionMaskInterface.register(_name, visibility_mask)
