"""Each kernel of multi-modal causal attention against the dense definition in float64: results and gradients.

`benchmarks.gpu` measures these cases on a GPU, and the tests marked `gpu` assert them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaModel

from benchmarks.attention import Shape
from benchmarks.layouts import Rows, between
from benchmarks.two_softmaxes import NAME, dense
from training.memory.trace import enable_checkpointing
from utils.model.mmca import attend
from utils.model.mmca_kernels import VARIABLE, States, kernel_for, prepare_kernel
from utils.model.mmca_layout import Layout, build_layout

KERNELS = ("flex", "flash", "masked")
"""The kernels that train on a GPU."""

DTYPES = {"float32": 1e-4, "bfloat16": 0.03}
"""How far results and gradients may be from those of float64, relative to the largest of them."""

LAYOUTS = {
    "one conversation": Rows("", ((between(500, 3, 64),),)),
    "packed": Rows("", ((between(200, 2, 64), between(90, 1, 64), ((130, False),)),)),
    "padded": Rows("", ((between(150, 1, 64),), (between(500, 2, 64),))),
    "30 images": Rows("", ((between(300, 30, 17),),)),
    "text alone": Rows("", ((((700, False),),),)),
}
SHAPES = ("32x64", "32/8x64")
"""Query heads, key-value heads where they are fewer, and their width."""

WAYS = ("plain", "checkpointed", "compiled")


@contextmanager
def kernel(name: str) -> Iterator[None]:
    """Attention by the kernel of that name, and float32 in full precision."""
    before, precision = os.environ.get(VARIABLE), torch.get_float32_matmul_precision()
    os.environ[VARIABLE] = name
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


@dataclass(frozen=True)
class AttentionCase:
    """One kernel over one layout; cached: the last 100 tokens alone ask, over the keys of all; gated: with a gate."""

    kernel: str
    dtype: str
    layout: str
    heads: str
    cached: bool = False
    gated: bool = False

    def __str__(self) -> str:
        how = ", cached" * self.cached + ", gated" * self.gated
        return f"{self.layout}{how}, {self.heads}, {self.dtype}"

    @property
    def tolerance(self) -> float:
        return DTYPES[self.dtype]

    def errors(self, device: str, backward: bool = True) -> tuple[str, float]:
        """The kernel that ran, and its largest error of result and gradients."""
        rows, shape = LAYOUTS[self.layout], Shape.of(self.heads)
        kinds, visible = rows.kinds.to(device), rows.visible(device)
        batch, length = kinds.shape
        queries = 100 if self.cached else length
        layout = build_layout(kinds, queries) if self.cached else rows.layout(device)
        generator = torch.Generator().manual_seed(0)
        states = [
            torch.randn(batch, heads, size, shape.width, generator=generator)
            for heads, size in ((shape.heads, queries), (shape.shared, length), (shape.shared, length))
        ]
        read = torch.ones_like(kinds) if rows.valid is None else rows.valid.to(device)
        read = read.bool()[:, -queries:]
        grad = torch.randn(batch, queries, shape.heads, shape.width, generator=generator).to(device)
        grad = grad * read[:, :, None, None]
        gate = torch.randn(shape.heads, generator=generator).to(device)
        if self.gated:
            states.append(gate)
        found, used = self._ours(layout, states, grad, device, backward)
        exact = [self._held(each, device).double().requires_grad_(backward) for each in states]
        wanted = [dense(*exact[:3], visible[:, :, -queries:], kinds, shape.width**-0.5, *exact[3:])]
        if backward:
            wanted += torch.autograd.grad(wanted[0], exact, grad.double())
        pairs = zip(found, wanted, strict=True)
        errors = [
            relative_error(*((out[read] for out in pair) if n == 0 else pair)) for n, pair in enumerate(pairs)
        ]
        return used, max(errors)

    def _ours(
        self, layout: Layout, states: list[torch.Tensor], grad: torch.Tensor, device: str, backward: bool
    ) -> tuple[list[torch.Tensor], str]:
        states = [self._held(each, device).requires_grad_(backward) for each in states]
        with kernel(self.kernel):
            prepare_kernel(States.of(states[0], states[2]), states[0].device)
            used = kernel_for(layout, states[0], states[2])
            found = [attend(layout, *states[:3], states[0].shape[-1] ** -0.5, 0.0, *states[3:])]
        if backward:
            found += torch.autograd.grad(found[0], states, grad.to(found[0].dtype))
        return found, used

    def _held(self, state: torch.Tensor, device: str) -> torch.Tensor:
        """In the type of attention; a gate, which is in float32, in its own."""
        return state.to(device, torch.float32 if state.ndim == 1 else getattr(torch, self.dtype))


@dataclass(frozen=True)
class DecoderCase:
    """Two layers of a stock decoder under one kernel: plain, with gradient checkpointing, compiled."""

    kernel: str
    dtype: str
    way: str

    def __str__(self) -> str:
        return f"decoder, {self.way}, {self.dtype}"

    @property
    def tolerance(self) -> float:
        return {"float32": 1e-3, "bfloat16": 0.05}[self.dtype]

    def errors(self, device: str) -> tuple[str, float]:
        """The kernel asked for, and the largest error of hidden states and of the embeddings' gradients."""
        rows = LAYOUTS["one conversation"]
        kinds, dtype = rows.kinds.to(device), getattr(torch, self.dtype)
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.05,  # so that attention counts among what else a layer adds
        )
        torch.manual_seed(0)
        decoder = LlamaModel(config).to(device).requires_grad_(False).train()
        states = torch.randn(*kinds.shape, config.hidden_size).to(device)
        grad = torch.randn(*states.shape).to(device)
        config._attn_implementation = NAME
        wanted = _run(decoder.double(), states.double(), kinds, grad)
        decoder = decoder.to(dtype)
        config._attn_implementation = "mmca"
        if self.way == "checkpointed":
            enable_checkpointing(decoder)
        with kernel(self.kernel):
            run = torch.compile(decoder) if self.way == "compiled" else decoder
            found = _run(run, states.to(dtype), kinds, grad)
        return self.kernel, max(map(relative_error, found, wanted))


def _run(
    decoder: LlamaModel, states: torch.Tensor, kinds: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    states = states.clone().requires_grad_()
    out = decoder(inputs_embeds=states, mm_token_type_ids=kinds, use_cache=False).last_hidden_state
    return out, torch.autograd.grad(out, states, grad.to(out.dtype))[0]


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest number that is wanted."""
    return float((found.double() - wanted).detach().abs().max() / wanted.detach().abs().max())


def cases(
    kernels: tuple[str, ...] = KERNELS, shapes: tuple[str, ...] = SHAPES
) -> list[AttentionCase | DecoderCase]:
    """Those of most worth first."""
    found: list[AttentionCase | DecoderCase] = []
    for dtype in reversed(DTYPES):
        for heads in shapes:
            found += [AttentionCase(name, dtype, layout, heads) for layout in LAYOUTS for name in kernels]
            found += [AttentionCase(name, dtype, "one conversation", heads, cached=True) for name in kernels]
            found += [AttentionCase(name, dtype, "packed", heads, gated=True) for name in kernels]
        found += [DecoderCase(name, dtype, way) for way in WAYS for name in kernels]
    return found
