"""The kernel for GPUs, as far as a CPU can hold it to its promises: its blocks, and its forward, compiled."""

import logging

import pytest
import torch

from utils.model import mmca_kernels
from utils.model.mmca_blocks import BLOCK, band_blocks
from utils.model.mmca_kernels import VARIABLE, attend_by_kernel, kernel_for
from utils.model.mmca_layout import build_layout
from utils.model.mmca_plan import Band


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
def test_compiled_forward_equals_the_masked_kernel(monkeypatch):
    layout = random_layout(0, length=400)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 400, 32) for heads in (4, 2, 2))
    outs = {}
    for kernel in ("flex", "masked"):
        monkeypatch.setenv(VARIABLE, kernel)
        with torch.no_grad():
            assert kernel_for(layout, query, value) == kernel
            outs[kernel] = attend_by_kernel(layout, query, key, value)
    torch.testing.assert_close(outs["flex"], outs["masked"], atol=1e-5, rtol=1e-5)


def test_training_on_a_cpu_goes_on_with_another_kernel_and_one_line(monkeypatch, caplog):
    layout = random_layout(0)
    query, _, value = (torch.randn(2, 2, 700, 16, requires_grad=True) for _ in range(3))
    monkeypatch.setenv(VARIABLE, "flex")
    monkeypatch.setattr(mmca_kernels, "_said", set())
    with caplog.at_level(logging.WARNING):
        assert {kernel_for(layout, query, value) for _ in range(3)} == {"masked"}
    assert len(caplog.records) == 1 and "trains on GPUs only" in caplog.text


def test_flash_attn_is_asked_for_where_it_is_not_installed(monkeypatch, caplog):
    layout = random_layout(0)
    query = torch.randn(2, 2, 700, 16)
    monkeypatch.setenv(VARIABLE, "flash")
    monkeypatch.setattr(mmca_kernels, "has_flash_attn", lambda: False)
    monkeypatch.setattr(mmca_kernels, "_said", set())
    with caplog.at_level(logging.WARNING):
        assert kernel_for(layout, query, query) == "masked"
    assert "flash-attn is not installed" in caplog.text


def test_a_kernel_that_fails_when_tried_is_left_alone(monkeypatch):
    """Whatever a compiler raises, and results that are wrong."""

    def broken(*args, **kwargs):
        raise RuntimeError("no such instruction\nmore")

    monkeypatch.setattr(mmca_kernels, "attend_by_flex", broken)
    given = ("flex", torch.device("cpu"), torch.float32, 2, 2, 16, 16)
    assert mmca_kernels._tried.__wrapped__(*given) == "RuntimeError: no such instruction"
    wrong = lambda layout, query, *rest, **kwargs: torch.zeros(2, 400, 2, 16)  # noqa: E731
    monkeypatch.setattr(mmca_kernels, "attend_by_flex", wrong)
    assert "off by" in mmca_kernels._tried.__wrapped__(*given)
