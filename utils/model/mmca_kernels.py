"""Which kernel computes multi-modal causal attention: chosen by device and number type, or named by the user.

Kernels register here, the preferred ones first; `masked` computes whatever no kernel takes. The environment variable
VISUALCHAT_ATTENTION_KERNEL names one for all devices; "auto" chooses.

A kernel is compiled and tested before the decoder's layers are entered (`prepare_kernel`), and never within one. A
layer under gradient checkpointing runs twice, and both times must do the same: tensors that a test inside it saved
for its own backward pass would be taken for the layer's. Layers only look up what was chosen.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedConfig

from .mmca_layout import Kernels, Layout, build_layout, masked_form, use_kernels
from .mmca_masked import attend_masked

logger = logging.getLogger(__name__)

VARIABLE = "VISUALCHAT_ATTENTION_KERNEL"
AUTO, MASKED = "auto", "masked"

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.05, torch.float16: 0.02}
"""How far a kernel may be from `masked` in its self-test, relative to the largest number."""


@dataclass(frozen=True)
class States:
    """What the choice depends on, of queries [B, H, Q, D], keys [B, Hkv, K, D] and values [B, Hkv, K, Dv]."""

    device: str
    dtype: torch.dtype
    group: int  # H / Hkv
    width: int
    value_width: int

    @classmethod
    def of(cls, query: torch.Tensor, value: torch.Tensor) -> "States":
        group = query.shape[1] // max(value.shape[1], 1)
        return cls(query.device.type, query.dtype, group, query.shape[3], value.shape[3])

    @classmethod
    def of_config(cls, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> "States":
        """Those that a decoder makes of embeddings of this type (autocast has one of its own)."""
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        shared = getattr(config, "num_key_value_heads", None) or heads
        if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        return cls(device.type, dtype, heads // shared, width, width)


@dataclass(frozen=True)
class Kernel:
    """A way to compute attention under a layout.

    why_not: the reason why it cannot compute such states, or None. prepare: makes of a layout what `attend` needs.
    attend: (layout, query, key, value, scaling, gate), query [B, H, Q, D], key and value [B, Hkv, K, D], gate [H] or
    None -> [B, Q, H, D].
    runs_in: whether it can in a context that only the layer knows. for_text: whether it is faster than torch's causal
    attention for text alone too.
    """

    why_not: Callable[[States], str | None]
    prepare: Callable[[Layout], object]
    attend: Callable[..., torch.Tensor]
    runs_in: Callable[[torch.Tensor], bool] = lambda query: True
    for_text: Callable[[States], bool] = lambda states: False


KERNELS: dict[str, Kernel] = {}

_chosen: dict[tuple[str, States], str] = {}


def register_kernel(name: str, kernel: Kernel) -> None:
    """Offer a kernel; of those that can compute something, the first registered does."""
    KERNELS[name] = kernel


def kernel_names() -> tuple[str, ...]:
    """What the variable may say."""
    return AUTO, *KERNELS, MASKED


def prepare_kernel(states: States, device: torch.device) -> str:
    """Choose the kernel for such states: compile and test it where that was not done. Call it outside of layers.

    Raises ValueError where the user names a kernel that there is not.
    """
    wanted = os.environ.get(VARIABLE) or AUTO
    if wanted not in (names := kernel_names()):
        raise ValueError(f"{VARIABLE} is {wanted!r}; choose one of {', '.join(names)}")
    if (wanted, states) not in _chosen:
        _chosen[wanted, states] = _choose(wanted, states, device)
    return _chosen[wanted, states]


def kernel_for(layout: Layout, query: torch.Tensor, value: torch.Tensor, dropout: float = 0.0) -> str:
    """The name of the kernel for these tensors; "causal" where there is nothing but plain text."""
    wanted = os.environ.get(VARIABLE) or AUTO
    states = States.of(query, value)
    name = _chosen.get((wanted, states), MASKED)
    plain = layout.is_causal and not dropout
    kernel = KERNELS.get(name)
    if (
        kernel is None
        or dropout  # no kernel knows it
        or layout.queries == 1  # for a single query, moving keys costs more than it saves
        or (plain and not kernel.for_text(states))
        or not kernel.runs_in(query)
    ):
        return "causal" if plain else MASKED
    return name


class RegisteredKernels(Kernels):
    """The registered kernels in the place of `masked` alone."""

    def prepare(
        self, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, layout: Layout | None = None
    ) -> None:
        states = States.of_config(config, device, dtype)
        name = prepare_kernel(states, device)
        if layout is None:
            return
        kernel = KERNELS.get(name) if layout.queries > 1 else None
        if not layout.is_causal or (kernel and kernel.for_text(states)):
            layout.prepared(kernel.prepare if kernel else masked_form)

    def attend(
        self,
        layout: Layout,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None = None,
        dropout: float = 0.0,
        gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        name = kernel_for(layout, query, value, dropout)
        if name in ("causal", MASKED):
            return super().attend(layout, query, key, value, scaling, dropout, gate)
        return KERNELS[name].attend(layout, query, key, value, scaling, gate)


registered = RegisteredKernels()
use_kernels(registered)


def _choose(wanted: str, states: States, device: torch.device) -> str:
    for name, kernel in KERNELS.items() if wanted == AUTO else ():
        if kernel.why_not(states) is None:
            error = _self_test_error(kernel, states, device)
            if error is None:
                return name
            _warn_once(f"attention is computed without the kernel {name}, which is faster: {error}")
    if wanted not in (AUTO, MASKED):
        asked = KERNELS[wanted]
        reason = asked.why_not(states) or _self_test_error(asked, states, device)
        if reason is None:
            return wanted
        _warn_once(f"{VARIABLE}={wanted}: {reason}; using {MASKED}")
    return MASKED


def _self_test_error(kernel: Kernel, states: States, device: torch.device) -> str | None:
    """What goes wrong with a kernel on a little of everything: packed text and images, both passes.

    Compilers and installed packages differ between machines; an answer that is wrong or an error must not be found out
    in training. A thread of its own knows nothing of the caller's autocast, inference mode, or hooks on saved tensors.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_self_test, kernel, states, device).result()


def _self_test(kernel: Kernel, states: States, device: torch.device) -> str | None:
    try:
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        pairs = _compare(kernel, states, device)
    except Exception as error:  # of any kind: compilers raise many, and `masked` can always go on
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    for ours, theirs in pairs:
        off = float((ours - theirs).detach().float().abs().max() / theirs.detach().float().abs().max())
        if not off <= _TOLERANCE[states.dtype]:
            return f"its results are off by {off:.1e}"
    return None


def _compare(kernel: Kernel, states: States, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What a kernel finds, beside what `masked` finds: the result and the gradients."""
    kinds = torch.zeros(2, 400, dtype=torch.long, device=device)
    kinds[:, 50:180], kinds[0, 300:310] = 1, 1
    begins = torch.zeros_like(kinds).bool()
    begins[1, 200] = True
    layout = build_layout(kinds, 400, begins=begins)
    generator = torch.Generator("cpu").manual_seed(0)
    heads = 2 * states.group, states.width
    given = [
        torch.randn(2, count, 400, width, generator=generator, dtype=torch.float32, device="cpu")
        .to(device, states.dtype)
        .requires_grad_()
        for count, width in (heads, (2, states.width), (2, states.value_width))
    ]
    gate = torch.randn(heads[0], generator=generator, dtype=torch.float32, device="cpu")
    given.append(gate.to(device).requires_grad_())
    query, key, value, factors = given
    found = kernel.attend(layout, query, key, value, None, factors)
    wanted = attend_masked(masked_form(layout), query, key, value, gate=factors)
    grads = (torch.autograd.grad(out.float().square().sum(), given) for out in (found, wanted))
    return [(found, wanted), *zip(*grads, strict=True)]


@lru_cache(maxsize=32)
def _warn_once(line: str) -> None:
    logger.warning(line)
