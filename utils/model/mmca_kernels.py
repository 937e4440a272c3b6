"""Which kernel computes multi-modal causal attention: chosen by device and size, or named by the user.

The environment variable VISUALCHAT_ATTENTION_KERNEL names one of `KERNELS` for all devices; "auto" chooses. A
kernel that cannot do what is asked (training through a kernel that is forward only, say) is passed over, and
one line in the log says so.
"""

import logging
import os
from functools import lru_cache

import torch
from torch.nn import functional as F

from .mmca_flex import attend_by_flex, has_flash_attn
from .mmca_fused import attend_fused, fused_takes
from .mmca_layout import Layout, build_layout
from .mmca_masked import attend_masked
from .mmca_pieces import attend_in_pieces, takes_pieces

logger = logging.getLogger(__name__)

VARIABLE = "VISUALCHAT_ATTENTION_KERNEL"
KERNELS = ("auto", "fused", "pieces", "flash", "flex", "masked")

_WORTH_A_CALL = 2e6
"""Multiplications and additions that a kernel does in the time that it takes to call it: some 20 us on a core."""

_TRIED_TO = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.05, torch.float16: 0.02}
"""How far a kernel may be from the masked one where it is tried, relative to the largest number."""


def attend_by_kernel(
    layout: Layout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """query [B, H, Q, D], key and value [B, Hkv, K, D] -> [B, Q, H, D]."""
    name = kernel_for(layout, query, value, dropout)
    if name == "causal":
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(
            query, key, value, scale=scaling, is_causal=True, enable_gqa=grouped
        )
        return out.transpose(1, 2).contiguous()
    if name == "fused":
        return attend_fused(layout, query, key, value, scaling)
    if name == "pieces":
        return attend_in_pieces(layout, layout.plan, query, key, value, scaling)
    if name in ("flash", "flex"):
        return attend_by_flex(layout, query, key, value, scaling, flash=name == "flash")
    return attend_masked(layout.masked, query, key, value, scaling, dropout)


def kernel_for(layout: Layout, query: torch.Tensor, value: torch.Tensor, dropout: float = 0.0) -> str:
    """The name of the kernel for these tensors; "causal" where there is nothing but plain text."""
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in KERNELS:
        raise ValueError(f"{VARIABLE} is {wanted!r}; choose one of {', '.join(KERNELS)}")
    if wanted == "auto":
        return _automatic(layout, query, value, dropout)
    if layout.is_causal and wanted != "fused" and not dropout:
        return "causal"
    if wanted != "masked" and (reason := _hindrance(wanted, query, value, dropout)):
        _say_once(f"{VARIABLE}={wanted}: {reason}; using masked")
        return "masked"
    return wanted


def _automatic(layout: Layout, query: torch.Tensor, value: torch.Tensor, dropout: float) -> str:
    plain = layout.is_causal and not dropout
    if layout.queries == 1:  # for a single query, moving keys costs more than it saves
        return "causal" if plain else "masked"
    if not dropout and fused_takes(query, value) and not (query.dtype == torch.bfloat16 and _has_tiles()):
        reason = _tried_fused(query, value)
        if not reason:
            return "fused"
        _say_once(f"attention does without its fused kernel, which is the fastest on a CPU: {reason}")
    if plain:
        return "causal"
    if query.device.type == "cuda":
        for name in ("flash", "flex") if has_flash_attn() else ("flex",):
            reason = _hindrance(name, query, value, dropout)
            if not reason:
                return name
            _say_once(f"attention does without {name}: {reason}")
        return "masked"
    if _hindrance("pieces", query, value, dropout):
        return "masked"
    calls = len(layout.plan.text_calls) + len(layout.plan.image_calls)
    operations = 4 * layout.plan.pairs * query.shape[1] * query.shape[3]
    return "pieces" if operations >= calls * _WORTH_A_CALL else "masked"


def _hindrance(name: str, query: torch.Tensor, value: torch.Tensor, dropout: float) -> str | None:
    """Why a kernel cannot compute this; None where it can."""
    if dropout:
        return "it knows no dropout"
    if name == "pieces":
        return None if takes_pieces(query, value) else "it needs a CPU, and values as wide as queries"
    if name == "fused":
        if fused_takes(query, value):
            return _tried_fused(query, value)
        return "it needs its C++ beside it, a CPU, float32 or bfloat16, values as wide as queries, no torch.compile"
    if name == "flash" and not has_flash_attn():
        return "the package flash-attn is not installed"
    trains = torch.is_grad_enabled() and query.requires_grad
    if query.device.type == "cpu" and (name == "flash" or (name == "flex" and trains)):
        return "it trains on GPUs only"
    heads = query.shape[1], value.shape[1]
    return _tried(name, query.device, query.dtype, *heads, query.shape[3], value.shape[3])


@lru_cache(maxsize=1)
def _has_tiles() -> bool:
    """Whether this CPU multiplies tiles of bfloat16 (AMX), as torch's kernels do, many times faster than float32."""
    return torch.cpu._is_amx_tile_supported()


def _tried_fused(query: torch.Tensor, value: torch.Tensor) -> str | None:
    """What it computes does not depend on how many heads there are, so few are tried."""
    (_, heads, _, width), shared = query.shape, value.shape[1]
    return _tried("fused", query.device, query.dtype, 2 * heads // shared, 2, width, width)


@lru_cache(maxsize=32)
def _tried(
    name: str, device: torch.device, dtype: torch.dtype, heads: int, shared: int, width: int, wide: int
) -> str | None:
    """What goes wrong when a kernel is tried on a little of everything: packed text and images, both passes.

    Compilers and installed packages differ between machines; an answer that is wrong or an error must not be
    found out in training.
    """
    try:
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            pairs = _tries(name, device, dtype, heads, shared, width, wide)
    except (
        Exception
    ) as error:  # compilers raise errors of many kinds; whatever it is, another kernel can do it
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    for ours, theirs in pairs:
        error = float((ours - theirs).detach().float().abs().max() / theirs.detach().float().abs().max())
        if not error <= _TRIED_TO[dtype]:
            return f"its results are off by {error:.1e}"
    return None


def _tries(
    name: str, device: torch.device, dtype: torch.dtype, heads: int, shared: int, width: int, wide: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What a kernel finds, beside what the masked one finds: the result and, where it trains, the gradients."""
    kinds = torch.zeros(2, 400, dtype=torch.long, device=device)
    kinds[:, 50:180], kinds[0, 300:310] = 1, 1
    begins = torch.zeros_like(kinds).bool()
    begins[1, 200] = True
    layout = build_layout(kinds, 400, begins=begins)
    trains = name == "fused" or device.type != "cpu"
    generator = torch.Generator("cpu").manual_seed(0)
    states = [
        torch.randn(2, count, 400, size, generator=generator, dtype=torch.float32, device="cpu")
        .to(device, dtype)
        .requires_grad_(trains)
        for count, size in ((heads, width), (shared, width), (shared, wide))
    ]
    with torch.set_grad_enabled(trains):
        if name == "fused":
            found = attend_fused(layout, *states, None)
        else:
            found = attend_by_flex(layout, *states, None, flash=name == "flash")
        wanted = attend_masked(layout.masked, *states)
        pairs = [(found, wanted)]
        if trains:
            grads = (torch.autograd.grad(out.float().square().sum(), states) for out in pairs[0])
            pairs += zip(*grads, strict=True)
    return pairs


_said: set[str] = set()


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        logger.warning(line)
