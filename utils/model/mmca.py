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

The layout (who sees whom) is made once per forward and shared by all layers; `attend` reads nothing else.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from .mmca_layout import Layout, Picked, build_layout

IMPLEMENTATIONS = {"mmca": "mmca", "cross": "cross", "causal": "sdpa"}
"""The decoder's `attn_implementation` for each attention of a VisualChat configuration."""

_LAYOUT = "_mmca_layout"  # a mask carries the layout made from it, so both live for one forward


def layout_of(
    module: nn.Module,
    mask: torch.Tensor | None,
    kinds: torch.Tensor | None,
    keys: int,
    sliding_window: int | None = None,
    joint: bool = False,
) -> Layout:
    """The layout of this forward, made by the first layer that asks and kept on the mask for the others.

    The decoder's own visibility counts: under a sliding window, all softmaxes read within it.
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
    if known is not None and known[0] is kinds and known[1] == joint:
        return known[2]
    if kinds.shape[1] > keys and sliding_window is None:
        raise ValueError(
            f"mm_token_type_ids cover {kinds.shape[1]} keys, but attention reads only {keys}; pass [B, K]"
            " with K = cached + new tokens"
        )
    layout = build_layout(mask[..., :keys], kinds[:, -keys:], joint)  # a sliding cache keeps the last keys
    if not torch.compiler.is_compiling():
        setattr(mask, _LAYOUT, (kinds, joint, layout))
    return layout


def attend(
    layout: Layout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention under a layout: query [B, H, Q, D], key and value [B, Hkv, K, D] -> [B, Q, H, D]."""
    batch, heads, rows, width = query.shape
    groups = heads // key.shape[1]
    asking = _pick(query, layout.queries)  # [B, H, T, D]
    out = None
    for reading in layout.readings:
        read_keys, read_values = (_repeat(_pick(tensor, reading.keys), groups) for tensor in (key, value))
        term = F.scaled_dot_product_attention(
            asking,
            read_keys,
            read_values,
            attn_mask=reading.mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=reading.mask is None,
        )
        if reading.blank is not None:
            term = term.masked_fill(reading.blank, 0.0)
        out = term if out is None else out + term
    if layout.queries is None:
        return out.transpose(1, 2).contiguous()
    own = value[:, :, -rows:] if layout.own_keys is None else _pick(value, layout.own_keys)
    own = _repeat(own, groups).transpose(1, 2)  # [B, Q, H, D]
    if out is None:
        return own.contiguous()
    places = layout.queries.places + rows * torch.arange(batch, device=query.device)[:, None]  # among B * Q
    out = out.transpose(1, 2).reshape(-1, heads, width)  # [B * T, H, D]
    places = places.flatten()
    if layout.queries.spare is not None:
        kept = ~layout.queries.spare.flatten()
        out, places = out[kept], places[kept]
    return own.reshape(-1, heads, width).index_copy(0, places, out).view(batch, rows, heads, width)


def _pick(states: torch.Tensor, picked: Picked | None) -> torch.Tensor:
    """The picked positions of [B, H, S, D]: [B, H, T, D]. Moves whole rows, which is what memory likes."""
    if picked is None:
        return states
    batch, heads, length, width = states.shape
    flat = picked.places + length * torch.arange(batch, device=states.device)[:, None]
    rows = states.transpose(1, 2).reshape(batch * length, heads * width).index_select(0, flat.flatten())
    return rows.view(batch, -1, heads, width).transpose(1, 2)


def _repeat(states: torch.Tensor, groups: int) -> torch.Tensor:
    """Key-value heads for every query head; SDPA's own grouping is slow under a mask."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _attention_function(joint: bool):
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
        layout = layout_of(module, attention_mask, mm_token_type_ids, key.shape[2], sliding_window, joint)
        return attend(layout, query, key, value, scaling, dropout), None

    return attention


def visibility_mask(*, allow_is_causal_skip: bool = True, **kwargs) -> torch.Tensor:
    """transformers' mask interface: its boolean [B, 1, Q, K] mask, made even where SDPA could do without."""
    return sdpa_mask(**kwargs, allow_is_causal_skip=False)


for _name, _joint in {"mmca": False, "cross": True}.items():
    AttentionInterface.register(_name, _attention_function(_joint))
    AttentionMaskInterface.register(_name, visibility_mask)
