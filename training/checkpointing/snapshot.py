"""Copies in main memory that later steps of training do not change, for a thread that writes them."""

import io
import pickle
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Copies:
    """What one save after the other copies.

    The memory is kept from save to save: to fill it again is several times faster than to fill memory which the system
    hands out only then.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[torch.UntypedStorage]] = {}  # by their bytes
        self._taken: dict[int, list[torch.UntypedStorage]] = defaultdict(list)

    def begin(self) -> None:
        """A save begins: nobody reads the copies of the one before any more. What that one did not need is let go."""
        self._free, self._taken = self._taken, defaultdict(list)

    def tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the CPU, contiguous and with memory of its own."""
        copy = torch.empty(0, dtype=tensor.dtype).set_(self._memory(tensor.nbytes), 0, tensor.shape)
        return copy.copy_(tensor.detach())

    def storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        """A copy on the CPU."""
        return self._memory(storage.nbytes()).copy_(storage)

    def snapshot(self, value: T) -> Callable[[], T]:
        """Copy `value` now, with its tensors on the CPU; what is returned gives the copy.

        Any value that `torch.save` takes, tensors on any device. It is copied as `torch.save` writes it: each storage
        once and whole, so that tensors which share memory go on sharing it, and a file of the copy holds what a file
        of the value would. Raises `RuntimeError` or `MemoryError` where there is no room.
        """
        structure = io.BytesIO()
        copier = _Copier(structure, self.storage)
        copier.dump(value)
        return lambda: _Joiner(structure, copier.copies).load()

    def _memory(self, size: int) -> torch.UntypedStorage:
        free = self._free.get(size)
        memory = free.pop() if free else torch.UntypedStorage(size)
        self._taken[size].append(memory)
        return memory


class _Copier(pickle.Pickler):
    """Takes the storages of tensors out of what it pickles, and copies them."""

    def __init__(
        self, file: io.BytesIO, copy: Callable[[torch.UntypedStorage], torch.UntypedStorage]
    ) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._copy = copy
        self.copies: list[torch.UntypedStorage] = []
        self._places: dict[int, int] = {}  # in `copies`, by the storage's address
        self._copied: list[torch.UntypedStorage] = []  # alive, so that no other gets its address

    def persistent_id(self, each: Any) -> tuple[int, torch.dtype | None] | None:
        if isinstance(each, torch.storage.TypedStorage):
            storage, dtype = each._untyped_storage, each.dtype
        elif isinstance(each, torch.UntypedStorage):
            storage, dtype = each, None
        else:
            return None
        place = self._places.setdefault(storage._cdata, len(self.copies))
        if place == len(self.copies):
            self.copies.append(self._copy(storage))
            self._copied.append(storage)
        return place, dtype


class _Joiner(pickle.Unpickler):
    """Puts the copies of the storages where they belong."""

    def __init__(self, file: io.BytesIO, copies: list[torch.UntypedStorage]) -> None:
        file.seek(0)
        super().__init__(file)
        self._copies = copies

    def persistent_load(self, found: tuple[int, torch.dtype | None]) -> Any:
        place, dtype = found
        if dtype is None:
            return self._copies[place]
        return torch.storage.TypedStorage(wrap_storage=self._copies[place], dtype=dtype, _internal=True)
