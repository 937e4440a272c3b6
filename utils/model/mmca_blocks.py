"""What text sees, in blocks of tokens, as FlexAttention takes it.

What a text token sees of either kind is a band of keys (`mmca_plan.Band`). So is what a block of text tokens
sees, of blocks of keys: blocks outside the band are never read, blocks inside need no mask, and only those at
its borders ask token by token. Finding them is arithmetic on the borders, which no device has to wait for.
"""

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from .mmca_plan import Band

BLOCK = 128
"""Tokens of a block, of queries and of keys."""


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
