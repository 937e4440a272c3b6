"""Attention alone: multi-modal causal attention as we compute it, as in 2023, and causal attention over everything.

    taskset -c 1 python -m benchmarks.attention              # the table of sizes
    taskset -c 1 python -m benchmarks.attention --layouts    # many layouts: is any slower than causal attention?

A size is text + images of 256 tokens, spread through the text. Contenders take turns in one process; a line gives
medians, how many times faster ours is, and the share of a large matrix product's speed at which it does what the
definition asks for. The layout is made once for all layers of a model, so it is timed apart.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from benchmarks.layouts import Rows, many_layouts, mixture
from benchmarks.turns import add_run_flags, print_machine, product_speed, take_turns, timed
from benchmarks.two_softmaxes import dense
from utils.model.mmca import attend
from utils.model.mmca_kernels import AUTO, VARIABLE, States, kernel_for, kernel_names, prepare_kernel

_SIZES = ["512+2", "256+4", "1024+4", "512+8", "256+8", "2048+8"]
_SIZES_ON_GPU = ["1024+4", "2048+8", "4096+16", "256+8"]
_HEADS = ["8x64", "32x128"]


@dataclass(frozen=True)
class Shape:
    """Query heads, key-value heads and their width."""

    heads: int
    shared: int
    width: int

    @classmethod
    def of(cls, text: str) -> "Shape":
        """From "32x128", or with fewer key-value heads "32/8x128"."""
        heads, width = text.split("x")
        heads, _, shared = heads.partition("/")
        return cls(int(heads), int(shared or heads), int(width))


class Case:
    """One layout with random queries, keys and values, in memory as decoders make them."""

    def __init__(self, rows: Rows, shape: Shape, dtype: torch.dtype, device: str, backward: bool) -> None:
        self.kinds, self.layout, self._backward = rows.kinds.to(device), rows.layout(device), backward
        self._visible = rows.visible(device)
        batch, length = self.kinds.shape
        torch.manual_seed(0)
        self.states = [
            torch.randn(batch, length, heads, shape.width, dtype=dtype, device=device)
            .transpose(1, 2)
            .requires_grad_(backward)
            for heads in (shape.heads, shape.shared, shape.shared)
        ]
        self._grad = torch.randn(batch, length, shape.heads, shape.width, dtype=dtype, device=device)
        self._scaling = shape.width**-0.5

    def prepare(self) -> str:
        """Choose the kernel, as a decoder does before its layers; its name."""
        query, _, value = self.states
        prepare_kernel(States.of(query, value), query.device)
        return kernel_for(self.layout, query, value)

    def ours(self) -> None:
        self._run(lambda *states: attend(self.layout, *states, self._scaling))

    def causal(self) -> None:
        """Over everything, padding and other conversations too: no mask could make it faster."""
        grouped = self.states[0].shape[1] != self.states[1].shape[1]

        def attention(*states: torch.Tensor) -> torch.Tensor:
            out = F.scaled_dot_product_attention(*states, is_causal=True, enable_gqa=grouped)
            return out.transpose(1, 2).contiguous()

        self._run(attention)

    def dense(self) -> None:
        self._run(lambda *states: dense(*states, self._visible, self.kinds, self._scaling))

    @property
    def operations(self) -> float:
        """Multiplications and additions that cannot be left out: two products forward, five more backward."""
        _, heads, _, width = self.states[0].shape
        pairs = sum(int((band.stop - band.start).sum()) for band in (self.layout.text, self.layout.image))
        return 4.0 * pairs * heads * width * (3.5 if self._backward else 1)

    def kept(self, contender: Callable[[], None]) -> int:
        """Bytes that a forward keeps for the backward pass."""
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            contender()
        return sum(storages.values())

    def _run(self, attention: Callable[..., torch.Tensor]) -> None:
        with torch.set_grad_enabled(self._backward):
            out = attention(*self.states)
        if self._backward:
            torch.autograd.grad(out, self.states, self._grad)


def main() -> None:
    """Print the tables."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=_SIZES_ON_GPU if on_gpu else _SIZES)
    parser.add_argument("--heads", nargs="+", default=["32x128", "32/8x128"] if on_gpu else _HEADS)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"] if on_gpu else ["float32"])
    parser.add_argument("--passes", nargs="+", default=["f", "fb"], choices=["f", "fb"])
    parser.add_argument("--kernels", nargs="+", default=[AUTO], choices=kernel_names())
    parser.add_argument("--layouts", action="store_true", help="many layouts, against causal attention")
    add_run_flags(parser, rounds=9)
    parser.add_argument("--no-dense", dest="dense", action="store_false", help="leave the form of 2023 out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.layouts:
        cases, arguments.dense = many_layouts(), False
    else:
        cases = [mixture(*map(int, size.split("+"))) for size in arguments.sizes]
    print("attention: ours, dense as in 2023, causal; f forward, fb forward and backward")
    print_machine()
    speeds = {dtype: product_speed(getattr(torch, dtype), arguments.device) for dtype in arguments.dtypes}
    for dtype, speed in speeds.items():
        print(f"a product of two large matrices: {speed / 1e9:,.0f} GFLOP/s in {dtype}")
    print(
        "| heads x width | dtype | text + images | pass | kernel | ours, ms | dense, ms | causal, ms", end=""
    )
    print(" | faster than dense | than causal | of a product's speed | kept ours / dense / causal, MB |")
    print("|---" * 12 + "|")
    ratios: dict[bool, list[tuple[float, str]]] = {True: [], False: []}  # by whether there is an image
    for shape in arguments.heads:
        for dtype in arguments.dtypes:
            for rows in cases:
                for which in arguments.passes:
                    ratio = _print_case(arguments, shape, dtype, rows, which == "fb", speeds[dtype])
                    ratios[bool(rows.kinds.any())].append((ratio, f"{shape}, {rows.name}, {which}"))
    for what, found in (("with images", ratios[True]), ("text alone", ratios[False])):
        if found:
            ratio, where = min(found)
            print(f"least of {what}: {ratio:.2f} times as fast as causal attention ({where})")


def _print_case(
    arguments: argparse.Namespace, shape: str, dtype: str, rows: Rows, backward: bool, speed: float
) -> float:
    """A line for each kernel; returns how many times faster than causal attention the slowest of them is."""
    case = Case(rows, Shape.of(shape), getattr(torch, dtype), arguments.device, backward)
    used = {name: _with_kernel(name, case.prepare)() for name in arguments.kernels}
    contenders = {name: _with_kernel(name, case.ours) for name in arguments.kernels}
    contenders["causal"] = case.causal
    if arguments.dense:
        contenders["dense"] = case.dense
    measured = take_turns(
        {name: (lambda _, work=work: timed(work)) for name, work in contenders.items()}, arguments.rounds
    )
    medians = {name: statistics.median(values) * 1e3 for name, values in measured.items()}
    kept = {name: f"{case.kept(contenders[name]) / 1e6:.0f}" if backward else "-" for name in measured}
    for name in arguments.kernels:
        ours, causal, dense_ = medians[name], medians["causal"], medians.get("dense")
        print(
            f"| {shape} | {dtype} | {rows.name} | {'fb' if backward else 'f'} | {used[name]}"
            f" | {ours:.2f} | {'-' if dense_ is None else f'{dense_:.1f}'} | {causal:.2f}"
            f" | {'-' if dense_ is None else f'{dense_ / ours:.1f}'} | {causal / ours:.2f}"
            f" | {case.operations / ours * 1e3 / speed:.0%}"
            f" | {kept[name]} / {kept.get('dense', '-')} / {kept['causal']} |",
            flush=True,
        )
    return min(medians["causal"] / medians[name] for name in arguments.kernels)


def _with_kernel(name: str, work: Callable[[], object]) -> Callable[[], object]:
    """The work under a kernel of that name."""

    def run() -> object:
        os.environ[VARIABLE] = name
        return work()

    return run


if __name__ == "__main__":
    main()
