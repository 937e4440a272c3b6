"""Multi-modal causal attention for GPUs: FlexAttention over compacted text and images, in blocks that are seen.

Text on text is plain causal attention where a batch is one conversation, and takes the fastest kernel that
torch has for it; several conversations go through flash-attn's kernel for rows of different length where that
package is installed, and through FlexAttention where it is not.

What a text token sees of either kind is a band of keys (`mmca_layout.Band`). So is what a block of text tokens
sees, of blocks of keys: blocks outside the band are never read, blocks inside need no mask, and only those at
its borders ask token by token. Finding them is arithmetic on the borders, which no device has to wait for.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .mmca_kernels import Kernel, States, register_kernel
from .mmca_layout import Band, Layout

BLOCK = 128
"""Tokens of a block, of queries and of keys."""


def why_not_flex(states: States) -> str | None:
    """Why FlexAttention cannot compute such states, or None; it trains on GPUs only."""
    return None if states.device == "cuda" else "it needs a GPU"


def why_not_flash(states: States) -> str | None:
    """Why flash-attn cannot compute such states, or None."""
    if find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    if states.dtype not in (torch.float16, torch.bfloat16):
        return "it needs float16 or bfloat16"
    return why_not_flex(states)


def attend_by_flex(
    layout: Layout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    gate: torch.Tensor | None = None,
    flash: bool = False,
) -> torch.Tensor:
    """query [B, H, Q, D], key and value [B, Hkv, K, D] -> [B, Q, H, D].

    gate: [H] on the images' term. flash: text on text by flash-attn.
    """
    batch, heads, rows, _ = query.shape
    width = value.shape[3]
    asking = _take(query, layout.rows)  # [1, H, T, D]
    text = _take(key, layout.text_keys), _take(value, layout.text_keys)
    if layout.whole and batch == 1 and layout.queries == layout.kinds.shape[1]:
        grouped = heads != key.shape[1]
        total = F.scaled_dot_product_attention(
            asking, *text, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    elif flash and layout.queries == layout.kinds.shape[1]:
        total = _flash(layout, asking, *text, scaling)
    else:
        total = _flex(asking, *text, layout.prepared(text_blocks), scaling)
    if layout.image_keys.numel():
        images = _take(key, layout.image_keys), _take(value, layout.image_keys)
        term = _flex(asking, *images, layout.prepared(image_blocks), scaling)
        total = total + (term if gate is None else term * gate.to(term.dtype)[:, None, None])
    out = query.new_empty(batch * rows, heads, width)
    out.index_copy_(0, layout.rows, total[0].transpose(0, 1).to(out.dtype))
    own = _rows(value).index_select(0, layout.passthrough_keys)
    out.index_copy_(0, layout.passthrough_rows, own.repeat_interleave(heads // value.shape[1], dim=1))
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

    borders, longest = layout.prepared(_conversations)
    states = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, H, D]
    out = flash_attn_varlen_func(
        *states, borders, borders, longest, longest, softmax_scale=scaling, causal=True
    )
    return out.transpose(0, 1)[None]


def text_blocks(layout: Layout) -> BlockMask:
    """What the rows see of the text."""
    return band_blocks(layout.text, layout.text_keys.numel())


def image_blocks(layout: Layout) -> BlockMask:
    """What the rows see of the images."""
    return band_blocks(layout.image, layout.image_keys.numel())


def band_blocks(band: Band, keys: int) -> BlockMask:
    """The blocks of T queries x `keys` keys that a band touches, and which of them need no mask."""
    rows = band.start.numel()
    # Rows that only fill up the last block see nothing; indices stay inside these tensors.
    start, stop = (F.pad(border, (0, -rows % BLOCK)) for border in (band.start, band.stop))

    def sees(_batch, _head, row, column):
        return (column >= start[row]) & (column < stop[row])

    blocks = start.view(-1, BLOCK), stop.view(-1, BLOCK)
    nothing = blocks[1] <= blocks[0]
    left = torch.where(nothing, keys, blocks[0]).amin(dim=1)[:, None]
    right = torch.where(nothing, 0, blocks[1]).amax(dim=1)[:, None]
    lefts = torch.arange(0, keys, BLOCK, device=start.device)[None]
    touched = (lefts < right) & (lefts + BLOCK > left)  # [T / 128, N / 128]
    whole = (lefts >= blocks[0].amax(dim=1)[:, None]) & (lefts + BLOCK <= blocks[1].amin(dim=1)[:, None])
    whole &= touched
    return BlockMask.from_kv_blocks(
        *_ordered(touched & ~whole),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(rows, keys),
    )


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks of each row [1, 1, R] are True, and which [1, 1, R, C], these first."""
    counts = blocks.sum(dim=1, dtype=torch.int32)
    which = (~blocks).int().argsort(dim=1, stable=True).int()
    return counts[None, None], which[None, None]


def _conversations(layout: Layout) -> tuple[torch.Tensor, int]:
    """Where the text of each conversation begins, and the last ends, [C + 1] int32; and the longest's length."""
    begins = layout.text.start.unique_consecutive()
    borders = torch.cat([begins, begins.new_tensor([layout.rows.numel()])]).int()
    return borders, int(borders.diff().max())


def _take(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The places, in order, of all rows of [B, H, S, D] together: [1, H, T, D]."""
    rows = _rows(states)
    if places.numel() < rows.shape[0]:
        rows = rows.index_select(0, places)
    return rows.transpose(0, 1)[None]


def _rows(states: torch.Tensor) -> torch.Tensor:
    """[B, H, S, D] as [B * S, H, D], a view where the heads of a token stand together in memory."""
    return states.transpose(1, 2).flatten(0, 1)


def _flex_blocks(layout: Layout) -> None:
    layout.prepared(text_blocks), layout.prepared(image_blocks)


def _flash_borders(layout: Layout) -> None:
    layout.prepared(_conversations), layout.prepared(image_blocks)


register_kernel("flash", Kernel(why_not_flash, _flash_borders, partial(attend_by_flex, flash=True)))
register_kernel("flex", Kernel(why_not_flex, _flex_blocks, attend_by_flex))
