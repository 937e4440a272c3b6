"""Keys and values of images within limits of bytes: on the model's devices first, then in memory."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch

from chat.limits import Limits
from utils.model.image_states import ImageStates

Tier = Literal["device", "memory"]
_CPU = torch.device("cpu")


class StateTiers:
    """The states least recently used leave each tier first: the device for memory, and memory for good.

    Not for several threads at once: `ImageStore` sees to that.
    """

    def __init__(self, limits: Limits, devices: Sequence[torch.device]) -> None:
        self._devices = tuple(devices)  # of each layer
        on_device = any(device.type != "cpu" for device in devices)
        self._allowed: dict[Tier, int] = {
            "device": limits.device if on_device else 0,
            "memory": limits.memory,
        }
        self._held: dict[Tier, OrderedDict[str, ImageStates]] = {
            tier: OrderedDict() for tier in self._allowed
        }
        self._bytes: dict[Tier, int] = dict.fromkeys(self._allowed, 0)

    def nbytes(self, tier: Tier) -> int:
        """What a tier holds now."""
        return self._bytes[tier]

    def get(self, key: str) -> ImageStates | None:
        """The states kept under `key`, on the model's devices; they count as just used."""
        if (states := self._held["device"].get(key)) is not None:
            self._held["device"].move_to_end(key)
            return states
        if (states := self._held["memory"].get(key)) is None:
            return None
        self._forget("memory", key)
        states = states.to(self._devices)
        self.put(key, states)
        return states

    def put(self, key: str, states: ImageStates) -> None:
        """Keep the states of an image."""
        self._hold(key, states, ("device", "memory"))

    def clear(self) -> None:
        """Forget everything."""
        for tier in self._allowed:
            self._held[tier].clear()
            self._bytes[tier] = 0

    def _hold(self, key: str, states: ImageStates, tiers: Sequence[Tier]) -> None:
        """Into the first of the tiers that has the size for it; what has to leave that one goes to the next."""
        for number, tier in enumerate(tiers, start=1):
            if states.nbytes > self._allowed[tier]:
                continue
            if tier == "memory":
                states = states.to([_CPU] * len(states.keys))
            self._forget(tier, key)
            self._held[tier][key] = states
            self._bytes[tier] += states.nbytes
            while self._bytes[tier] > self._allowed[tier]:
                oldest, leaving = next(iter(self._held[tier].items()))
                self._forget(tier, oldest)
                self._hold(oldest, leaving, tiers[number:])
            return

    def _forget(self, tier: Tier, key: str) -> None:
        if (states := self._held[tier].pop(key, None)) is not None:
            self._bytes[tier] -= states.nbytes
