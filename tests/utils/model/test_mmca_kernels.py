"""Which kernel is chosen, when it is tested, and what it keeps."""

import logging

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from utils.model import mmca_kernels
from utils.model.mmca_kernels import (
    VARIABLE,
    Kernel,
    States,
    kernel_for,
    prepare_kernel,
    register_kernel,
    registered,
)
from utils.model.mmca_layout import build_layout


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


def prepared(layout, query, value, **kwargs):
    """The kernel for tensors, as it is chosen before a decoder's layers."""
    prepare_kernel(States.of(query, value), query.device)
    return kernel_for(layout, query, value, **kwargs)


@pytest.fixture
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(mmca_kernels, "_chosen", {})
    mmca_kernels._warn_once.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_for_the_backward_pass_grows_with_the_length_and_is_less_than_causal_keeps(dtype):
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
        return kept(lambda *given: registered.attend(layout, *given), layout)

    def causal(layout):
        return kept(
            lambda *given: torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True), layout
        )

    assert prepared(mix(2), *states(mix(2), 4, 4, 32, dtype)[::2]) == "fused"
    assert ours(mix(8)) <= 4 * ours(mix(2))
    assert ours(mix(4)) < causal(mix(4))


@pytest.mark.parametrize("kernel", ["fused", "masked"])
def test_a_known_number_of_image_tokens_changes_nothing_but_who_is_asked(kernel, monkeypatch):
    """As on GPUs, where padding then stays among the text and sees itself alone."""
    monkeypatch.setenv(VARIABLE, kernel)
    kinds = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0]])
    valid = torch.ones_like(kinds).bool()
    valid[0, :1] = valid[1, -2:] = False
    begins = torch.zeros_like(valid)
    begins[1, 6] = True
    exact, counted = (build_layout(kinds, 12, valid, begins, known) for known in (None, 8))
    assert counted.image_keys.numel() == counted.passthrough_rows.numel() == 8 and counted.rows.numel() == 16
    given = states(exact, heads=4, shared=2)
    assert prepared(counted, *given[::2]) == kernel
    ours, theirs = (registered.attend(layout, *given) for layout in (counted, exact))
    torch.testing.assert_close(ours[valid], theirs[valid])
    assert ours.isfinite().all()


def test_kernels_are_chosen_by_what_there_is(monkeypatch):
    images, text = layout_of((99, 0), (512, 1), (300, 0)), layout_of((99, 0))
    for layout, otherwise in ((images, "masked"), (text, "causal")):
        query, _, value = states(layout, heads=8, shared=8, width=64)
        for tiles in (False, True):  # torch multiplies bfloat16 by AMX, where a CPU has it
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
            half = [each.to(torch.bfloat16) for each in (query, value)]
            assert prepared(layout, *half) == ("causal" if tiles and layout is text else "fused")
            assert prepared(layout, query, value) == "fused"
        for dtype in (torch.float16, torch.float64):
            assert prepared(layout, query.to(dtype), value.to(dtype)) == otherwise
        with monkeypatch.context() as alone:
            alone.delitem(mmca_kernels.KERNELS, "fused")  # as in the copy of the code in a checkpoint
            alone.setattr(mmca_kernels, "_chosen", {})
            assert prepared(layout, query, value) == otherwise
    query, _, value = states(images)
    assert prepared(images, query, value, dropout=0.1) == "masked"


@pytest.mark.parametrize("kernel", ["flex", "flash"])
def test_a_kernel_that_cannot_is_passed_over_with_one_line(kernel, monkeypatch, caplog, nothing_chosen):
    layout = layout_of((9, 0), (4, 1), (9, 0))
    query, _, value = states(layout)
    monkeypatch.setenv(VARIABLE, kernel)
    with caplog.at_level(logging.WARNING):
        assert {prepared(layout, query, value) for _ in range(3)} == {"masked"}
    assert (
        len(caplog.records) == 1 and f"{VARIABLE}={kernel}" in caplog.text and "using masked" in caplog.text
    )


def test_an_unknown_kernel_is_an_error(monkeypatch):
    layout = layout_of((9, 0), (4, 1))
    query, _, value = states(layout)
    monkeypatch.setenv(VARIABLE, "fastest")
    with pytest.raises(ValueError, match="VISUALCHAT_ATTENTION_KERNEL is 'fastest'; choose one of auto, "):
        prepared(layout, query, value)


@pytest.fixture
def calls(monkeypatch, nothing_chosen):
    """Shapes of the queries that a kernel of the test's own is called with; no other kernel is there."""
    shapes = []

    def attend(layout, query, key, value, scaling, gate):
        shapes.append(query.shape)
        form = layout.prepared(mmca_kernels.masked_form)
        return mmca_kernels.attend_masked(form, query, key, value, scaling, gate=gate)

    monkeypatch.setattr(mmca_kernels, "KERNELS", {})
    register_kernel("own", Kernel(lambda states: None, mmca_kernels.masked_form, attend))
    return shapes


def decoder(kv_heads=2, head_dim=16):
    torch.manual_seed(0)
    sizes = dict(vocab_size=20, hidden_size=32, intermediate_size=32, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=kv_heads, head_dim=head_dim)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, attn_implementation="mmca"))


KINDS = torch.tensor([[0, 1, 1, 0, 0, 0, 1, 1, 0, 0]])


def gradients(model, way):
    """The loss and its gradient by the embeddings, of a first forward under a way of checkpointing."""
    ids = torch.arange(10)[None]
    embedded = torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    model.train()
    if way in ("reentrant", "not reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": way == "reentrant"})

    def loss(embedded):
        return model(inputs_embeds=embedded, mm_token_type_ids=KINDS, labels=ids, use_cache=False).loss

    loss = checkpoint(loss, embedded, use_reentrant=False) if way == "whole" else loss(embedded)
    loss.backward()
    return loss.detach(), embedded.grad


@pytest.mark.parametrize("way", ["none", "reentrant", "not reentrant", "whole"])
@pytest.mark.parametrize("kernel", ["fused", "masked"])
def test_a_stock_decoder_s_first_forward_may_be_checkpointed(way, kernel, monkeypatch, nothing_chosen):
    monkeypatch.setenv(VARIABLE, "masked")
    wanted = gradients(decoder(), "none")
    monkeypatch.setenv(VARIABLE, kernel)
    torch.testing.assert_close(gradients(decoder(), way), wanted)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [{}, {"kv_heads": 4}, {"kv_heads": 1, "head_dim": 24}], ids=str)
def test_a_kernel_is_tested_before_layers_are_entered_and_never_within_one(shape, autocast, calls):
    """In a checkpointed layer that would end in torch's CheckpointError."""
    model = decoder(**shape)
    before = []
    model.model.layers[0].register_forward_pre_hook(lambda *_: before.append(len(calls)))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            gradients(model, "not reentrant")
    tests, layers = calls[:1], calls[1:]
    assert before[0] == 1 and tests[0][2] == 400 and len(layers) >= 8
    assert {shape[2] for shape in layers} == {KINDS.shape[1]}


def test_a_kernel_that_fails_its_test_or_is_wrong_is_left_alone(monkeypatch, caplog, nothing_chosen):
    """Whatever a compiler raises."""
    layout = layout_of((9, 0), (4, 1), (9, 0))
    query, _, value = states(layout)

    def broken(*args):
        raise RuntimeError("no such instruction\nmore")

    def wrong(layout, *given):
        return 2 * mmca_kernels.attend_masked(mmca_kernels.masked_form(layout), *given[:4], gate=given[4])

    monkeypatch.setattr(mmca_kernels, "KERNELS", {})
    for name, attend in {"broken": broken, "wrong": wrong}.items():
        register_kernel(name, Kernel(lambda states: None, mmca_kernels.masked_form, attend))
    with caplog.at_level(logging.WARNING):
        assert {prepared(layout, query, value) for _ in range(3)} == {"masked"}
    first, second = caplog.messages
    assert first.endswith("RuntimeError: no such instruction") and "its results are off by" in second
