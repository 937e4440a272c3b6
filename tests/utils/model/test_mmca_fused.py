"""Attention in C++: every way it is compiled, long rows, threads, memory of any kind, and doing without it."""

import copy
import logging
import os
import pickle
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from utils.model import mmca_fused, mmca_kernels
from utils.model.compiled_library import CompileError, compiled_library
from utils.model.mmca_fused import SOURCE, attend_fused
from utils.model.mmca_kernels import States, kernel_for, prepare_kernel, registered
from utils.model.mmca_layout import build_layout, masked_form
from utils.model.mmca_masked import attend_masked

IS_X86 = platform.machine() in ("x86_64", "AMD64")
MACHINES = ("native", *(("haswell", "x86-64") if IS_X86 else ()))  # vectors of 16, 8 and 4 numbers on x86


def spans(*parts):
    return torch.tensor([kind for kind, length in parts for _ in range(length)])


def mixed():
    """A long conversation with images of 9 and 130 tokens; a row of padding, five conversations and padding again."""
    long = spans((0, 150), (1, 130), (0, 17), (1, 9), (0, 14))
    packed = spans(
        (0, 9), (0, 4), (1, 9), (0, 90), (1, 30), (0, 1), (0, 31), (1, 9), (0, 40), (1, 60), (0, 37)
    )
    kinds = torch.stack([long, packed])
    valid = torch.ones_like(kinds).bool()
    valid[1, :9] = valid[1, -6:] = False
    begins = torch.zeros_like(valid)
    begins[1, [9, 13, 142, 143, 183]] = True
    return build_layout(kinds, kinds.shape[1], valid, begins)


def states(layout, heads=4, shared=2, width=20, dtype=torch.float32, queries=None):
    generator = torch.Generator().manual_seed(0)
    batch, keys = layout.kinds.shape
    shapes = (heads, queries or keys), (shared, keys), (shared, keys)
    return [
        torch.randn(batch, length, count, width, generator=generator)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for count, length in shapes
    ]


def with_gradients(attention, layout, given):
    out = attention(layout, *given)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    if layout.valid is not None:
        weights = weights * layout.valid[:, -out.shape[1] :, None, None]
    return out * (weights != 0), *torch.autograd.grad(out, given, weights)


def gate(heads=4):
    return torch.randn(heads, generator=torch.Generator().manual_seed(2)).requires_grad_()


def fused(layout, query, key, value, gate=None):
    return attend_fused(layout, query, key, value, None, gate)


def exact(layout, *given):
    query, key, value, *gate = (each.double() for each in given)
    return attend_masked(masked_form(layout), query, key, value, None, 0.0, *gate)


def prepare(query, value):
    return prepare_kernel(States.of(query, value), query.device)


def self_test():
    states = States("cpu", torch.float32, 2, 32, 32)
    return mmca_kernels._self_test_error(mmca_kernels.KERNELS["fused"], states, torch.device("cpu"))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("heads", "shared", "width"), [(4, 4, 64), (4, 2, 20), (3, 1, 8)])
def test_equals_masked_attention_in_float64(machine, heads, shared, width, monkeypatch):
    library = compiled_library(SOURCE, (f"-march={machine}",))
    monkeypatch.setattr(mmca_fused, "_functions", lambda: (library.mmca_forward, library.mmca_backward))
    layout = mixed()
    for given in (
        states(layout, heads, shared, width),
        [*states(layout, heads, shared, width), gate(heads)],
    ):
        for ours, theirs in zip(
            with_gradients(fused, layout, given), with_gradients(exact, layout, given), strict=True
        ):
            torch.testing.assert_close(ours.double(), theirs.double(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("gates", [[], [gate()]], ids=["no gate", "gate"])
def test_bfloat16_is_as_close_as_its_numbers_are(gates):
    layout = mixed()
    given = [*states(layout, dtype=torch.bfloat16), *gates]
    found, wanted = with_gradients(fused, layout, given), with_gradients(exact, layout, given)
    assert [each.dtype for each in found] == [torch.bfloat16] * 4 + [torch.float32] * len(gates)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.double() - theirs.double()).abs().max() < 0.01 * theirs.abs().max()


def test_any_number_of_threads_gives_the_same_bits():
    """With more threads than heads, rows of a long conversation are shared out."""
    layout = build_layout(spans((0, 900), (1, 50), (0, 400))[None], 1350)
    given = [*states(layout, heads=2, shared=1), gate(2)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(with_gradients(fused, layout, given))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_may_lie_in_memory_in_any_way(dtype):
    """Heads apart, as caches keep them; a stride between the numbers of a head; one element into a memory."""
    layout = mixed()
    plain = [each.detach() for each in states(layout, dtype=dtype)]
    ways = {
        "heads apart": [each.contiguous() for each in plain],
        "strided": [torch.stack([each, each], -1)[..., 0] for each in plain],
        "odd": [torch.nn.functional.pad(each, (1, 0))[..., 1:] for each in plain],
        "expanded": [plain[0], *(each[:, :1].expand(-1, 2, -1, -1) for each in plain[1:])],
    }
    for name, given in ways.items():
        same = [each.contiguous().requires_grad_() for each in given]
        given = [each.requires_grad_() for each in given]
        found = zip(with_gradients(fused, layout, given), with_gradients(fused, layout, same), strict=True)
        assert all(torch.equal(one, other) for one, other in found), name


def test_new_queries_over_a_cache_give_its_keys_gradients():
    kinds = torch.stack([spans((0, 60), (1, 30), (0, 60)), spans((1, 50), (0, 70), (1, 30))])
    last, whole = build_layout(kinds, 40), build_layout(kinds, 150)
    given = states(whole)
    found = with_gradients(fused, last, [given[0][:, :, -40:].detach().requires_grad_(), *given[1:]])
    wanted = with_gradients(exact, last, [given[0][:, :, -40:].detach().requires_grad_(), *given[1:]])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-20, 30.0, 1e4])
def test_scores_of_any_size(size):
    layout = mixed()
    given = [(each * size).detach().requires_grad_() for each in states(layout)[:2]] + states(layout)[2:]
    ours, theirs = fused(layout, *given).double(), exact(layout, *given)
    asked = layout.valid[..., None, None]
    torch.testing.assert_close(ours * asked, theirs * asked, atol=1e-3, rtol=1e-3)
    assert all(each.isfinite().all() for each in with_gradients(fused, layout, given))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_no_number_stays_seen(which):
    """A training that goes wrong must say so."""
    layout = build_layout(spans((0, 40), (1, 9), (0, 40))[None], 89)
    given = [each.detach().clone() for each in states(layout)]
    given[which][:, :, 35] = torch.nan
    assert fused(layout, *given)[0, 35].isnan().any()
    assert fused(layout, *given)[0, :32].isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        lambda query, key, value: (query, key, value.bfloat16()),
        lambda query, key, value: (query.bfloat16(), key, value),
        lambda query, key, value: (query[:, :, 1:], key, value),
        lambda query, key, value: (query, key[:, :, 1:], value[:, :, 1:]),
        lambda query, key, value: (query, key[:1], value[:1]),
        lambda query, key, value: (query[:, :3], key, value),
        lambda query, key, value: (query, key[..., 1:], value),
        lambda query, key, value: (query, key[:, :0], value[:, :0]),
    ],
)
def test_what_is_not_as_the_layout_has_it_is_an_error(change):
    """It is read by address, so nothing else would notice."""
    layout = mixed()
    with pytest.raises(
        ValueError, match=r"attention of 320 queries to 320 keys in 2 rows got .* they must be"
    ):
        fused(layout, *change(*states(layout)))


def test_a_gate_of_another_number_of_heads_is_an_error():
    layout = mixed()
    with pytest.raises(ValueError, match=r"the gate of 4 heads is \[3\]"):
        fused(layout, *states(layout), gate(3))


def test_a_wrong_number_of_image_tokens_is_an_error():
    layout = build_layout(spans((0, 9), (1, 4), (0, 9))[None], 22, image_tokens=6)
    with pytest.raises(ValueError, match="is image_tokens right"):
        fused(layout, *states(layout))


@pytest.mark.parametrize("layout", [mixed(), build_layout(torch.zeros(2, 90, dtype=torch.long), 90)])
def test_what_is_kept_may_be_moved_and_come_back(layout):
    """As torch's own offloading does it, which lays tensors anew."""
    given = states(layout, heads=4, shared=2)
    wanted = torch.autograd.grad(fused(layout, *given).square().sum(), given)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: each.contiguous(), lambda each: each):
        out = fused(layout, *given)
    for one, other in zip(torch.autograd.grad(out.square().sum(), given), wanted, strict=True):
        assert torch.equal(one, other)


def test_copies_of_a_layout_know_their_own_memory():
    layout = mixed()
    given = states(layout)
    out = fused(layout, *given)
    for other in (copy.deepcopy(layout), pickle.loads(pickle.dumps(layout))):
        memory = (each.prepared(mmca_fused.Memory.of).addresses for each in (other, layout))
        assert next(memory) != next(memory)
        assert torch.equal(fused(other, *given), out)


def test_what_looks_on_from_outside_is_left_to_another_kernel():
    layout = build_layout(spans((0, 400), (1, 400), (0, 400))[None], 1200)
    query, _, value = (each.detach() for each in states(layout, heads=8, shared=8, width=64))
    assert prepare(query, value) == "fused"
    with torch.autograd.forward_ad.dual_level():
        assert kernel_for(layout, query, value) == "masked"
    kinds = []
    torch.func.vmap(lambda query: kinds.append(kernel_for(layout, query, value)) or query)(query[None])
    with FlopCounterMode(display=False):
        kinds.append(kernel_for(layout, query, value))
    assert kinds == ["masked", "masked"] and kernel_for(layout, query, value) == "fused"


def test_the_self_test_knows_nothing_of_its_caller():
    """The first forward of a process may be in inference, under autocast or within hooks on saved tensors."""
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda each: saved.append(each) or each, lambda each: each
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
            hooks,
            FlopCounterMode(display=False),
        ):
            assert self_test() is None
    finally:
        torch.set_default_dtype(torch.float32)
    assert not saved


def test_without_a_compiler_attention_does_without_it_and_says_so_once(monkeypatch, caplog):
    def no_compiler():
        raise CompileError("no C++ compiler is installed")

    layout = build_layout(spans((0, 400), (1, 400), (0, 400))[None], 1200)
    query, key, value = states(layout, heads=8, shared=8, width=64)
    prepare(query, value)
    expected = registered.attend(layout, query, key, value)
    monkeypatch.setattr(mmca_fused, "_functions", no_compiler)
    monkeypatch.setattr(mmca_kernels, "_chosen", {})
    mmca_kernels._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for given in (query, query.bfloat16()):
            assert prepare(given, value) == "masked" == kernel_for(layout, given, value)
        torch.testing.assert_close(registered.attend(layout, query, key, value), expected)
    assert len(caplog.records) == 1 and "no C++ compiler is installed" in caplog.text


SANITIZED = """
import torch
from tests.utils.model.test_mmca_fused import *
flags = "-march=native", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
library = compiled_library(SOURCE, flags)
mmca_fused._functions = lambda: (library.mmca_forward, library.mmca_backward)
layouts = mixed(), build_layout(torch.zeros(2, 90, dtype=torch.long), 90), build_layout(torch.ones(2, 9).long(), 9)
for layout in layouts:
    for dtype in mmca_fused.DTYPES:
        for heads, shared, width in (4, 4, 64), (4, 2, 20), (3, 1, 8):
            with_gradients(fused, layout, states(layout, heads, shared, width, dtype))
            with_gradients(fused, layout, [*states(layout, heads, shared, width, dtype), gate(heads)])
print("nothing found")
"""


@pytest.mark.slow
def test_sanitizers_find_nothing():
    """Of addresses and undefined behaviour, in what the kernel does with memory of its own."""
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(map(os.path.isabs, libraries)):
        pytest.skip("g++ has no sanitizers here")
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "nothing found" in done.stdout, done.stderr[-3000:]
