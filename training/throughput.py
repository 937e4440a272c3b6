"""How fast training goes: tokens, supervised tokens and images a second over all processes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from utils.data.encode import IGNORED_LABEL

_COUNTED = ("tokens", "supervised_tokens", "images")


class ThroughputMeter:
    """Counts what the batches hold, on the batches' device and without waiting for it, and the time in
    between.
    """

    def __init__(self) -> None:
        self._counts: torch.Tensor | None = None
        self._since = time.perf_counter()
        self._paused = 0.0

    def count(self, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Add batches; padding is not counted as tokens."""
        for batch in batches:
            pixels = batch.get("pixel_values")
            tokens = _real_tokens(batch)
            images = torch.full_like(tokens, 0 if pixels is None else len(pixels))
            counts = torch.stack([tokens, batch["labels"].ne(IGNORED_LABEL).sum(), images])
            self._counts = counts if self._counts is None else self._counts + counts

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the block (evaluating, saving) out of the account."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def read(self, device: torch.device) -> dict[str, float]:
        """Rates since the last reading over all processes, which all call; empty before the first batch."""
        if self._counts is None:
            return {}
        counts = self._counts.to(device, torch.float64)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(counts)
        totals = counts.tolist()  # waits for the device, so the clock is read afterwards
        now = time.perf_counter()
        seconds = max(now - self._since - self._paused, 1e-9)
        self._counts, self._since, self._paused = None, now, 0.0
        return {
            f"{name}_per_second": round(total / seconds, 2)
            for name, total in zip(_COUNTED, totals, strict=True)
        }


def _real_tokens(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if "attention_mask" in batch:
        return batch["attention_mask"].sum()
    # Packed: positions count up in a conversation; padding stays at 0.
    positions = batch["position_ids"]  # [B, S]
    return positions.gt(0).sum() + (positions[:, :-1].eq(0) & positions[:, 1:].eq(1)).sum()
