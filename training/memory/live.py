"""Bytes of the tensors that are alive, as PyTorch's dispatcher sees them come and go.

A `LiveMemory` counts storages, not tensors: views share theirs. It serves twice: over tensors on the meta
device it foretells a run (`shapes`), over real ones on a CPU, which has no peak counter of its own, it measures
one. What a kernel allocates and frees within itself it does not see.
"""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


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
        self._total = self._peak = 0
        self._known: dict[int, tuple[int, str]] = {}

    @property
    def total(self) -> int:
        """Bytes that are alive now."""
        return self._total

    @property
    def peak(self) -> int:
        """The most bytes that were alive at once."""
        return self._peak

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        self._peak, self.at_peak = self._total, self.live.copy()

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
        self._total += size
        if self._total > self._peak:
            self._peak, self.at_peak = self._total, self.live.copy()

    def relabel(self, tensor: torch.Tensor, label: str) -> None:
        """Count a tensor that is counted already under another label."""
        key = tensor.untyped_storage()._cdata
        if key in self._known:
            size, before = self._known[key]
            self._known[key] = (size, label)
            self.live[before] -= size
            self.live[label] += size

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._enter_all(result)
        return result

    def _enter_all(self, result: Any) -> None:
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.enter(value)

    def _leave(self, key: int) -> None:
        size, label = self._known.pop(key)
        self.live[label] -= size
        self._total -= size


def tensors_alive(device: str) -> Iterator[torch.Tensor]:
    """All tensors on a kind of device that Python knows of."""
    gc.collect()
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor) and each.device.type == device:
            yield each
