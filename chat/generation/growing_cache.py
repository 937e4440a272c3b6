"""A cache of keys and values that grows in place, so that a step of generation copies only its own token."""

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class GrowingLayer(CacheLayerMixin):
    """One layer's keys and values [B, H, S, D], at the start of a longer piece of memory.

    When that is full its size doubles: each token is copied a fixed number of times, however long the text.
    """

    is_sliding = False
    is_croppable = True
    _least = 64

    def __init__(self) -> None:
        super().__init__()
        self._length = 0
        self._memory: tuple[torch.Tensor, ...] = ()  # of keys and values

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, H, Q, D]; returns all keys and values, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self._length = self._length, self._length + key_states.shape[2]
        self._make_room(key_states, value_states, start)
        for memory, new in zip(self._memory, (key_states, value_states), strict=True):
            memory[:, :, start : self._length] = new
        self._show()
        return self.keys, self.values

    def _make_room(self, key_states: torch.Tensor, value_states: torch.Tensor, used: int) -> None:
        if self._memory and self._memory[0].shape[2] >= self._length:
            return
        size = max(self._least, 2 * self._length)
        grown = []
        for number, new in enumerate((key_states, value_states)):
            memory = new.new_empty(*new.shape[:2], size, new.shape[3])
            if self._memory:
                memory[:, :, :used] = self._memory[number][:, :, :used]
            grown.append(memory)
        self._memory = tuple(grown)

    def _show(self) -> None:
        self.keys, self.values = (memory[:, :, : self._length] for memory in self._memory)

    def get_seq_length(self) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` tokens (transformers gives a negative number)."""
        if self.is_initialized and tokens_to_remove:
            self._length = max(self._length - abs(tokens_to_remove), 0)
            self._show()


def growing_cache() -> Cache:
    """An empty cache of such layers, for any number of them."""
    return Cache(layer_class_to_replicate=GrowingLayer)
