"""Bytes of the tensors that are alive, and a model that runs on shapes alone.

A `LiveMemory` counts storages, not tensors, as PyTorch's dispatcher sees them come and go: views share theirs. What a
kernel allocates and frees within itself it does not see. Over real tensors on a CPU, which has no peak counter of its
own, it measures a run.

A `ShapeRun` foretells one: floating point tensors are on the meta device, integers are real. Weights and activations
have a shape and a size, and no content; so a step of a 70B model takes seconds and no memory. Ids, masks, positions and
all that is made of them are real, small tensors on the CPU: code that decides by them (which tokens are images, which
rows are supervised) decides as it would in earnest.
"""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only


class LiveMemory(TorchDispatchMode):
    """Counts the storages of one kind of device that operations create, by label, and remembers the peak.

    `label` is what the next ones are counted under; `begin(tensors)` enters those that are there already.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.label = "other"
        self.live: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.total = self.peak = 0  # bytes that are alive now, and the most that were at once
        self._known: dict[int, tuple[int, str]] = {}

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Count what is created in the block under a label."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def enter(self, tensor: torch.Tensor, label: str | None = None) -> None:
        """Count a tensor's storage, unless it is counted already."""
        if tensor.device.type != self.device or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        label = label or self.label
        self._known[key] = (size, label)
        weakref.finalize(storage, self._leave, key).atexit = False
        self.live[label] += size
        self.total += size
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, self.live.copy()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = self._computed(func, args, dict(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.enter(value)
        return result

    def _computed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _leave(self, key: int) -> None:
        size, label = self._known.pop(key)
        self.live[label] -= size
        self.total -= size


def tensors_alive(device: str) -> Iterator[torch.Tensor]:
    """All tensors on a kind of device that Python knows of."""
    gc.collect()
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor) and each.device.type == device:
            yield each


_aten = torch.ops.aten


class ShapeRun(LiveMemory):
    """Within it, operations on meta tensors run on shapes, and what they allocate is counted."""

    def __init__(self) -> None:
        super().__init__("meta")
        _register_attention()

    def _computed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)]
        if not any(each.is_meta for each in tensors):
            _keep_integers_real(func, tensors, args, kwargs)
            return func(*args, **kwargs)
        if func is _aten.index.Tensor:  # how many rows a mask picks is known only where it is real
            args = (args[0], _places(args[1]))
        elif func is _aten.masked_select.default:
            return args[0].new_empty(int(args[1].expand(args[0].shape).sum()))
        elif func is _aten.masked_scatter_backward.default:
            return args[0].new_empty(args[2])
        elif func is _aten._local_scalar_dense.default:
            raise RuntimeError("the model decides by a number that is computed from its activations")
        as_meta = tree_map_only(
            torch.Tensor, lambda each: each if each.is_meta else each.to("meta"), (args, kwargs)
        )
        return func(*as_meta[0], **as_meta[1])


def _keep_integers_real(
    func: OpOverload, tensors: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Send what is made or moved "to the device of the model" there only if it is floating point."""
    device = kwargs.get("device")
    if device is None or torch.device(device).type != "meta":
        return
    dtype = kwargs.get("dtype")
    if dtype is None and tensors:
        dtype = tensors[0].dtype
    elif dtype is None:
        takes_numbers = func.overloadpacket in (_aten.arange, _aten.full, _aten.scalar_tensor)
        numbers = (
            [each for each in tree_iter(args) if not isinstance(each, torch.Size)] if takes_numbers else [0.0]
        )
        dtype = torch.get_default_dtype() if any(isinstance(each, float) for each in numbers) else torch.int64
    if not dtype.is_floating_point:
        kwargs["device"] = torch.device("cpu")


def _places(indices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Masks among the indices as the places that they pick."""
    places: list[torch.Tensor | None] = []
    for each in indices:
        if each is not None and each.dtype == torch.bool:
            places += each.nonzero(as_tuple=True)
        else:
            places.append(each)
    return places


@cache
def _register_attention() -> torch.library.Library:
    """Attention on meta tensors as the fused kernels do it, which keep no scores; PyTorch would fall back."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", _fused_attention, "AutogradMeta")
    return library


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`F.scaled_dot_product_attention` through the kernel that works on all of the arguments' forms.

    It keeps query, key, value, result, one number a row, and the mask in the query's precision.
    """
    if attn_mask is not None:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device="meta")
    kernel = _aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
