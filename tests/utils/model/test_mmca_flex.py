"""The kernel for GPUs, as far as a CPU can hold it to its promises: its blocks, and its forward, compiled."""

import pytest
import torch

from utils.model.mmca_flex import BLOCK, attend_by_flex, band_blocks
from utils.model.mmca_layout import Band, build_layout, masked_form
from utils.model.mmca_masked import attend_masked


def random_layout(seed, length=700):
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.zeros(2, length, dtype=torch.long)
    for row in kinds:
        for start in torch.randint(length - 260, (3,), generator=generator).tolist():
            row[start : start + 130] = 1
    begins = torch.rand(2, length, generator=generator) < 0.01
    valid = torch.ones_like(kinds).bool()
    valid[0, : int(torch.randint(90, (), generator=generator))] = False
    return build_layout(kinds, length, valid if seed % 2 else None, begins)


def dense(band, keys):
    places = torch.arange(keys)
    return (places >= band.start[:, None]) & (places < band.stop[:, None])


@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_those_that_somebody_sees(seed):
    """And, of images, those between what two conversations in a block see: rare, and masked."""
    layout = random_layout(seed)
    for band, keys in (
        (layout.text, layout.text_keys.numel()),
        (layout.image, layout.image_keys.numel()),
    ):
        blocks = band_blocks(band, keys)
        seen = dense(band, keys)
        padded = torch.nn.functional.pad(seen, (0, -keys % BLOCK, 0, -len(seen) % BLOCK))
        tiles = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).transpose(1, 2).flatten(2)
        inside = tiles.any(2) & (tiles.sum(2) == BLOCK * BLOCK)
        partial = _listed(blocks.kv_num_blocks, blocks.kv_indices)
        assert not (partial & inside).any() and (partial | inside)[tiles.any(2)].all()
        if band is layout.text:
            assert torch.equal(partial | inside, tiles.any(2))
        assert torch.equal(_listed(blocks.full_kv_num_blocks, blocks.full_kv_indices), inside)
        rows = torch.arange(len(seen))[:, None]
        assert torch.equal(blocks.mask_mod(0, 0, rows, torch.arange(keys)), seen)


def _listed(counts, which):
    """Blocks that are listed, as a table."""
    table = torch.zeros(which.shape[2:]).bool()
    for row, (count, places) in enumerate(zip(counts[0, 0].tolist(), which[0, 0], strict=True)):
        table[row, places[:count].long()] = True
    return table


def test_a_row_that_sees_nothing_makes_no_block_whole():
    band = Band(torch.zeros(128).long(), torch.tensor([0] + [128] * 127))
    assert band_blocks(band, 128).full_kv_num_blocks.sum() == 0


@pytest.mark.slow
def test_compiled_forward_equals_the_masked_kernel():
    layout = random_layout(0, length=400)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 400, 32) for heads in (4, 2, 2))
    for gate in (None, torch.randn(4)):
        with torch.no_grad():
            found = attend_by_flex(layout, query, key, value, None, gate)
            wanted = attend_masked(masked_form(layout), query, key, value, gate=gate)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
