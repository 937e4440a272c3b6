"""The kernel without masks: which pieces a layout is cut into, what is kept, and when it is chosen."""

import logging

import pytest
import torch

from utils.model import mmca_fused, mmca_kernels
from utils.model.mmca_kernels import VARIABLE, attend_by_kernel, kernel_for
from utils.model.mmca_layout import build_layout
from utils.model.mmca_pieces import attend_in_pieces
from utils.model.mmca_plan import Piece


def layout_of(*spans, rows=1, **kwargs):
    """One conversation of (tokens, kind) spans in each row."""
    kinds = torch.cat([torch.full((length,), kind) for length, kind in spans]).expand(rows, -1)
    return build_layout(kinds, kinds.shape[1], **kwargs)


def states(layout, heads=2, shared=2, width=16, dtype=torch.float32):
    torch.manual_seed(0)
    batch, length = layout.kinds.shape
    return [
        torch.randn(batch, length, count, width, dtype=dtype).transpose(1, 2)
        for count in (heads, shared, shared)
    ]


def test_golden_plan():
    """Worked out by hand: 300 text tokens make two triangles and a square; each run sees whole images."""
    plan = layout_of((200, 0), (10, 1), (60, 0), (10, 1), (40, 0)).plan
    assert plan.text == (
        Piece(0, 150, 0, 150, True, True),
        Piece(150, 300, 150, 300, True, True),
        Piece(150, 300, 0, 150, False, False),
    )
    assert plan.image == (Piece(200, 300, 0, 10, False, True), Piece(260, 300, 10, 20, False, False))
    assert [(run.top, run.bottom, run.place) for run in plan.runs] == [
        (0, 200, 0),
        (200, 260, 210),
        (260, 300, 280),
    ]


def test_long_runs_of_text_have_their_images_to_themselves():
    """No row is put together from two: that is for short runs."""
    plan = layout_of((300, 0), (10, 1), (300, 0), (10, 1), (300, 0)).plan
    assert plan.image == (Piece(300, 600, 0, 10, False, True), Piece(600, 900, 0, 20, False, True))


def test_scores_of_images_with_anything_before_them_are_not_computed():
    plan = layout_of((64, 0), (256, 1), (64, 0), (256, 1), (64, 0)).plan
    assert plan.pairs == 192 * 192 + 64 * 256 + 64 * 512


@pytest.mark.parametrize("kernel", ["fused", "pieces"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_for_the_backward_pass_grows_with_the_length_and_is_less_than_causal_keeps(
    kernel, dtype, monkeypatch
):
    monkeypatch.setenv(VARIABLE, kernel)

    def kept(attention, layout):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        given = [state.requires_grad_() for state in states(layout, 4, 4, 32, dtype)]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            attention(*given)
        return sum(sizes.values())

    def mix(times):
        return layout_of(*[(64, 0), (256, 1)] * times, (64, 0))

    def ours(layout):
        return kept(lambda *given: attend_by_kernel(layout, *given), layout)

    def causal(layout):
        return kept(
            lambda *given: torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True), layout
        )

    assert kernel_for(mix(2), *states(mix(2), 4, 4, 32, dtype)[::2]) == kernel
    assert ours(mix(8)) <= 4 * ours(mix(2))
    assert ours(mix(4)) < causal(mix(4))


def test_new_text_over_a_cache_in_several_rows(monkeypatch):
    """The last 5 of 12 keys are asked for; padding on the left of a row; grouped heads."""
    kinds = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0]])
    valid = torch.ones_like(kinds).bool()
    valid[1, :2] = False
    whole, last = (build_layout(kinds, queries, valid) for queries in (12, 5))
    query, key, value = states(whole, heads=4, shared=2, dtype=torch.float64)
    expected = attend_by_kernel(whole, query, key, value)[:, -5:]
    for kernel in ("pieces", "masked"):
        monkeypatch.setenv(VARIABLE, kernel)
        out = attend_by_kernel(last, query[:, :, -5:], key, value)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("kernel", ["pieces", "masked"])
def test_a_known_number_of_image_tokens_changes_nothing_but_who_is_asked(kernel, monkeypatch):
    """As on GPUs, where padding then stays among the text and sees itself alone."""
    monkeypatch.setenv(VARIABLE, kernel)
    kinds = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0]])
    valid = torch.ones_like(kinds).bool()
    valid[0, :1] = valid[1, -2:] = False
    begins = torch.zeros_like(valid)
    begins[1, 6] = True
    exact, counted = (build_layout(kinds, 12, valid, begins, known) for known in (None, 8))
    assert counted.image_keys.numel() == counted.others.numel() == 8 and counted.rows.numel() == 16
    given = states(exact, heads=4, shared=2, dtype=torch.float64)
    ours, theirs = (attend_by_kernel(layout, *given) for layout in (counted, exact))
    torch.testing.assert_close(ours[valid], theirs[valid])
    assert ours.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, monkeypatch):
    monkeypatch.setenv(VARIABLE, "pieces")
    layout = layout_of((300, 0), (64, 1), (100, 0), (64, 1), (200, 0))
    exact = [state.requires_grad_() for state in states(layout, 4, 2, 32, torch.float64)]
    rough = [state.detach().to(dtype).requires_grad_() for state in exact]
    grads = []
    for given in (exact, rough):
        assert kernel_for(layout, given[0], given[2]) == "pieces"
        grads.append(torch.autograd.grad(attend_by_kernel(layout, *given).sum(), given))
    for ours, theirs in zip(grads[1], grads[0], strict=True):
        assert (ours.double() - theirs).abs().max() < 0.03 * theirs.abs().max()


def test_kernels_are_chosen_by_what_there_is_and_by_size(monkeypatch):
    small, large, text = layout_of((9, 0), (4, 1), (9, 0)), layout_of((99, 0), (512, 1), (300, 0)), [(99, 0)]
    cases = (small, "masked"), (large, "pieces"), (layout_of(*text), "causal")
    for layout, otherwise in cases:
        query, _, value = states(layout, heads=8, shared=8, width=64)
        assert kernel_for(layout, query, value) == "fused"
        assert kernel_for(layout, query.half(), value.half()) == otherwise
        with monkeypatch.context() as alone:
            alone.setattr(mmca_fused, "_AT_HAND", False)
            assert kernel_for(layout, query, value) == otherwise
    query, _, value = states(large)
    assert kernel_for(large, query, value, dropout=0.1) == "masked"


@pytest.mark.parametrize(("tiles", "name"), [(False, "fused"), (True, "pieces")])
def test_where_a_cpu_multiplies_tiles_of_bfloat16_torch_does_it(tiles, name, monkeypatch):
    monkeypatch.setattr(mmca_kernels, "_has_tiles", lambda: tiles)
    layout = layout_of((99, 0), (512, 1), (300, 0))
    query, _, value = states(layout, heads=8, shared=8, width=64)
    assert kernel_for(layout, query, value) == "fused"
    assert kernel_for(layout, query.bfloat16(), value.bfloat16()) == name


def test_a_kernel_that_cannot_is_passed_over_with_one_line(monkeypatch, caplog):
    layout = layout_of((9, 0), (4, 1), (9, 0))
    query, _, value = states(layout)
    monkeypatch.setenv(VARIABLE, "pieces")
    monkeypatch.setattr(mmca_kernels, "_said", set())
    with caplog.at_level(logging.WARNING):
        assert {kernel_for(layout, query, value, dropout=0.1) for _ in range(3)} == {"masked"}
    assert len(caplog.records) == 1 and "using masked" in caplog.text


def test_an_unknown_kernel_is_an_error(monkeypatch):
    layout = layout_of((9, 0), (4, 1))
    query, _, value = states(layout)
    monkeypatch.setenv(VARIABLE, "fastest")
    with pytest.raises(ValueError, match="VISUALCHAT_ATTENTION_KERNEL is 'fastest'; choose one of auto, "):
        kernel_for(layout, query, value)


def test_states_at_any_place_in_memory_give_the_same():
    """A view that begins one element into its memory cannot be read in wider elements."""
    layout = layout_of((20, 0), (4, 1), (10, 0), (4, 1), (6, 0), rows=2)
    plain = states(layout)
    odd = [torch.nn.functional.pad(each, (1, 0))[..., 1:] for each in plain]
    results = []
    for given in (plain, odd):
        given = [each.detach().requires_grad_() for each in given]
        out = attend_in_pieces(layout, layout.plan, *given, None)
        results.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)
