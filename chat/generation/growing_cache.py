"""A cache of keys and values that grows in place, so that a step of generation copies only its own token."""

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """One layer's keys and values [B, H, S, D], at the start of a longer piece of memory.

    When that is full its size doubles: each token is copied a fixed number of times, however long the text.
    """

    _least = 64

    def __init__(self) -> None:
        super().__init__()
        self._memory: tuple[torch.Tensor, ...] = ()  # of keys and values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, H, Q, D]; returns all keys and values, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        length = used + key_states.shape[2]
        if not self._memory or self._memory[0].shape[2] < length:
            self._grow(key_states, value_states, max(self._least, 2 * length))
        for memory, new in zip(self._memory, (key_states, value_states), strict=True):
            memory[:, :, used:length] = new
        self.keys, self.values = (memory[:, :, :length] for memory in self._memory)
        return self.keys, self.values

    def _grow(self, key_states: torch.Tensor, value_states: torch.Tensor, size: int) -> None:
        """Memory for `size` tokens like these, with what is there."""
        used = self.get_seq_length()
        grown = tuple(new.new_empty(*new.shape[:2], size, new.shape[3]) for new in (key_states, value_states))
        if used:
            for memory, kept in zip(grown, (self.keys, self.values), strict=True):
                memory[:, :, :used] = kept
        self._memory = grown


def growing_cache() -> Cache:
    """An empty cache of such layers, for any number of them."""
    return Cache(layer_class_to_replicate=GrowingLayer)
