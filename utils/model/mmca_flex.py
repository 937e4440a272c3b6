"""Multi-modal causal attention for GPUs: FlexAttention over compacted text and images, in blocks that are seen.

Text on text is plain causal attention where a batch is one conversation, and takes the fastest kernel that
torch has for it; several conversations go through flash-attn's kernel for rows of different length where that
package is installed, and through FlexAttention where it is not.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from .mmca_blocks import BlockMask
from .mmca_layout import Layout
from .mmca_pieces import rows_of, take


def has_flash_attn() -> bool:
    """Whether the package flash-attn is installed."""
    return find_spec("flash_attn") is not None


def attend_by_flex(
    layout: Layout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    flash: bool = False,
) -> torch.Tensor:
    """query [B, H, Q, D], key and value [B, Hkv, K, D] -> [B, Q, H, D]; flash: text on text by flash-attn."""
    batch, heads, rows, width = query.shape
    asking = take(query, layout.rows)  # [1, H, T, D]
    text = take(key, layout.text_keys), take(value, layout.text_keys)
    if layout.whole and batch == 1 and layout.queries == layout.kinds.shape[1]:
        grouped = heads != key.shape[1]
        total = F.scaled_dot_product_attention(
            asking, *text, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    elif flash and layout.queries == layout.kinds.shape[1]:
        total = _flash(layout, asking, *text, scaling)
    else:
        total = _flex(asking, *text, layout.text_blocks, scaling)
    if layout.image_keys.numel():
        images = take(key, layout.image_keys), take(value, layout.image_keys)
        total = total + _flex(asking, *images, layout.image_blocks, scaling)
    out = query.new_empty(batch * rows, heads, width)
    out.index_copy_(0, layout.rows, total[0].transpose(0, 1).to(out.dtype))
    own = rows_of(value).index_select(0, layout.own)
    out.index_copy_(0, layout.others, own.repeat_interleave(heads // value.shape[1], dim=1))
    return out.view(batch, rows, heads, width)


@lru_cache(maxsize=2)
def _compiled(on_cpu: bool) -> Callable[..., torch.Tensor]:
    """Compiled once for each shape on CPUs, whose compiler fails at shapes that vary; elsewhere they may vary."""
    return torch.compile(flex_attention, dynamic=False if on_cpu else None)


def _flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: BlockMask, scaling: float | None
) -> torch.Tensor:
    grouped = query.shape[1] != key.shape[1]
    return _compiled(query.device.type == "cpu")(
        query, key, value, block_mask=blocks, scale=scaling, enable_gqa=grouped
    )


def _flash(
    layout: Layout, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Conversations [1, H, T, D] one after the other, each causal."""
    from flash_attn import flash_attn_varlen_func  # optional: only where it is installed

    borders, longest = layout.conversations
    states = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, H, D]
    out = flash_attn_varlen_func(
        *states, borders, borders, longest, longest, softmax_scale=scaling, causal=True
    )
    return out.transpose(0, 1)[None]
