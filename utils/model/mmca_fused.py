"""Multi-modal causal attention on CPUs as one function of C++, `mmca_fused.cpp`, compiled where it first runs.

What is kept for the backward pass: queries of text, keys and values, and for each text row its result in either
softmax and the logarithms of its sums. That grows with the length, and where images are a third of the tokens or
more it is less than causal attention keeps.
"""

import ctypes
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx, once_differentiable

from .compiled_library import compiled_library
from .mmca_kernels import Kernel, States, register_kernel
from .mmca_layout import Layout

SOURCE = Path(__file__).with_suffix(".cpp")
DTYPES = (torch.float32, torch.bfloat16)

# What the C++ takes, `Call` there: eight tensors by address and three strides, four addresses of what is kept for
# the backward pass, three of the gate, nine of the layout, nine counts, the scaling and whether numbers are bfloat16.
_CALL = struct.Struct("=" + "Qqqq" * 8 + "Q" * 4 + "Q" * 3 + "Q" * 9 + "q" * 9 + "fi")
_NONE = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Memory:
    """A layout as the C++ reads it: counts, and where a CPU's memory has its places and borders.

    text_rows, other_rows: how many queries there are of either kind. image_top: the first text row that sees an image;
    text_rows where none does. text_alone: all queries are text, and no image is among the keys. addresses: of rows,
    others, own, text and image keys, and the borders of both bands.
    """

    text_rows: int
    other_rows: int
    image_top: int
    text_alone: bool
    addresses: tuple[int, ...]

    @classmethod
    def of(cls, layout: Layout) -> "Memory":
        """Valid while the layout lives. Raises ValueError for places that are out of order."""
        places = (
            layout.rows,
            layout.passthrough_rows,
            layout.passthrough_keys,
            layout.text_keys,
            layout.image_keys,
        )
        borders = layout.text.start, layout.text.stop, layout.image.start, layout.image.stop
        for each in places + borders:
            if each.dtype != torch.long or not each.is_contiguous() or (each.numel() and each[-1] < 0):
                raise ValueError(
                    "a layout's places and borders must be whole numbers in order; is image_tokens right?"
                )
        return cls(
            layout.rows.numel(),
            layout.passthrough_rows.numel(),
            int((layout.image.stop == layout.image.start).cumprod(0).sum()),
            not layout.passthrough_rows.numel() and not layout.image_keys.numel(),
            tuple(each.data_ptr() for each in places + borders),
        )


def why_not_fused(states: States) -> str | None:
    """Why the kernel cannot compute such states, or None; whether there is a compiler, its self-test finds out."""
    if states.device != "cpu" or states.dtype not in DTYPES or states.width != states.value_width:
        return "it needs a CPU, float32 or bfloat16, and values as wide as queries"
    return None


def for_text(states: States) -> bool:
    """Not in bfloat16 where the CPU has AMX, which torch's causal attention uses and this kernel does not."""
    return states.dtype != torch.bfloat16 or not torch.cpu._is_amx_tile_supported()


def is_plain(query: torch.Tensor) -> bool:
    """Whether nothing follows torch's functions from outside (torch.compile, torch.func, forward gradients, dispatch
    modes, tensors of other kinds): it would not see this one.
    """
    return (
        type(query) in (torch.Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._functorch.is_functorch_wrapped_tensor(query)
        and forward_ad._current_level < 0
    )


def attend_fused(
    layout: Layout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """query [B, H, Q, D], key and value [B, Hkv, K, D] -> [B, Q, H, D]; gate: [H] on the images' term, in float32.

    Raises ValueError for tensors that are not as the layout has them, CompileError where there is no library.
    """
    gate = None if gate is None else gate.float().contiguous()
    _check(layout, query, key, value, gate)
    if not query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        query, key, value = (each.contiguous() for each in (query, key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    given = query, key, value, gate
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in given):
        return _Attention.apply(*given, layout, scaling)
    result = _like(query)
    _run_forward(layout, scaling, *given, result, kept=_NONE)
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        gate: torch.Tensor | None,
        layout: Layout,
        scaling: float,
    ) -> torch.Tensor:
        _, heads, _, width = query.shape
        memory = layout.prepared(Memory.of)
        rows, top = memory.text_rows, memory.image_top
        result = _like(query)
        image = query.new_empty(rows - top, heads, width) if top < rows else None
        lse = query.new_empty(2, heads, rows, dtype=torch.float32)
        if (
            memory.text_alone and query.transpose(1, 2).is_contiguous()
        ):  # they are in memory as they are wanted
            asked, text, written = query.transpose(1, 2), result, (0, 0)
        else:
            asked, text = query.new_empty(2, rows, heads, width)
            written = asked.data_ptr(), text.data_ptr()
        kept = (*written, _address(image), lse.data_ptr())
        _run_forward(layout, scaling, query, key, value, gate, result, kept)
        ctx.save_for_backward(asked, key, value, text, image, lse, gate)
        ctx.layout, ctx.scaling = layout, scaling
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        asked, key, value, text, image, lse, gate = ctx.saved_tensors
        # whoever kept them elsewhere may have laid them anew
        asked, text, lse = asked.contiguous(), text.contiguous(), lse.contiguous()
        image = None if image is None else image.contiguous()
        if not key.stride(-1) == value.stride(-1) == 1:
            key, value = key.contiguous(), value.contiguous()
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        d_query, d_key, d_value = torch.empty_like(grad), _like(key), _like(value)
        if grad.shape[1] != key.shape[2]:  # keys of earlier forwards may be seen by nobody
            d_key.zero_(), d_value.zero_()
        d_gate, gates = None, (0, 0, 0)
        if gate is not None:
            gate, d_gate = gate.contiguous(), torch.empty_like(gate)
            memory = ctx.layout.prepared(Memory.of)
            of_rows = gate.new_empty(gate.numel(), memory.text_rows - memory.image_top)
            gates = gate.data_ptr(), d_gate.data_ptr(), of_rows.data_ptr()
        given = (*_NONE, *_heads_first(key), *_heads_first(value), *_heads_later(grad), *_NONE)
        wanted = (*_heads_later(d_query), *_heads_later(d_key), *_heads_later(d_value))
        kept = asked.data_ptr(), text.data_ptr(), _address(image), lse.data_ptr()
        d_query, d_key, d_value = (each.transpose(1, 2) for each in (d_query, d_key, d_value))
        _run(1, ctx.layout, ctx.scaling, d_query, key, (*given, *wanted, *kept, *gates))
        return d_query, d_key, d_value, d_gate, None, None


def _check(
    layout: Layout, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gate: torch.Tensor | None
) -> None:
    """Memory is read by address: it must be there."""
    (batch, heads, _, width), shared = query.shape, key.shape[1]
    rows, keys = layout.kinds.shape
    states = batch, shared, keys, width
    right = (
        query.shape[2] == layout.queries
        and batch == rows
        and key.shape == value.shape == states
        and shared > 0
        and heads % shared == 0
        and query.dtype == key.dtype == value.dtype
        and query.device == key.device == value.device == layout.rows.device
    )
    if not right:
        found = ", ".join(f"{list(each.shape)} {each.dtype}" for each in (query, key, value))
        raise ValueError(
            f"attention of {layout.queries} queries to {keys} keys in {rows} rows got query, key and value"
            f" {found}; they must be [B, H, Q, D] and twice [B, Hkv, K, D], of one type, with H a multiple of Hkv"
        )
    if gate is not None and (gate.shape != (heads,) or gate.device != query.device):
        raise ValueError(f"the gate of {heads} heads is {list(gate.shape)} on {gate.device}; it must be [H]")


def _run_forward(
    layout: Layout,
    scaling: float,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gate: torch.Tensor | None,
    result: torch.Tensor,
    kept: tuple[int, ...],
) -> None:
    """Fill the result [B, Q, H, D]; kept: the addresses of what is kept for the backward pass, zeros for nothing."""
    given = (*_heads_first(query), *_heads_first(key), *_heads_first(value), *_NONE, *_heads_later(result))
    _run(0, layout, scaling, query, key, (*given, *_NONE * 3, *kept, _address(gate), 0, 0))


def _run(
    which: int, layout: Layout, scaling: float, query: torch.Tensor, key: torch.Tensor, given: tuple[int, ...]
) -> None:
    """Call the function of the forward (0) or the backward pass (1); given: the call's fields before the layout's."""
    _, heads, queries, width = query.shape
    _, shared, keys, _ = key.shape
    memory = layout.prepared(Memory.of)
    counts = memory.text_rows, memory.other_rows, memory.image_top, heads, shared, queries, keys, width
    is_half = key.dtype == torch.bfloat16
    call = _CALL.pack(*given, *memory.addresses, *counts, torch.get_num_threads(), scaling, is_half)
    if _functions()[which](call):
        raise MemoryError("no memory is left for attention's blocks of keys; use shorter rows")


@lru_cache(maxsize=1)
def _functions() -> tuple:
    library = compiled_library(SOURCE)
    functions = library.mmca_forward, library.mmca_backward
    for function in functions:
        function.argtypes = [ctypes.c_char_p]
    return functions


def _like(states: torch.Tensor) -> torch.Tensor:
    """[B, S, H, D] for [B, H, S, D], with the heads of a token together in memory, as decoders want results."""
    batch, heads, length, width = states.shape
    return states.new_empty(batch, length, heads, width)


def _heads_first(states: torch.Tensor) -> tuple[int, ...]:
    """Address and strides of [B, H, S, D]."""
    batch, head, token, _ = states.stride()
    return states.data_ptr(), batch, head, token


def _heads_later(states: torch.Tensor) -> tuple[int, ...]:
    """Address and strides of [B, S, H, D]."""
    batch, token, head, _ = states.stride()
    return states.data_ptr(), batch, head, token


def _address(states: torch.Tensor | None) -> int:
    return 0 if states is None else states.data_ptr()


register_kernel("fused", Kernel(why_not_fused, Memory.of, attend_fused, runs_in=is_plain, for_text=for_text))
