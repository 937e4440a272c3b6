"""How fast training goes, and what it uses: rates over all processes, waiting, memory, share of the peak."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.extension import Extension, Prepared, Verdict
from training.metrics.mfu import Efficiency, visible_pairs
from utils.commands import GIB
from utils.data import IGNORED_LABEL, Batch

_RATES = ("tokens", "supervised_tokens", "images")
_STATUS = Path("/proc/self/status")


class ThroughputMeter(Extension):
    """Counts what the batches hold, on the batches' device and without waiting for it, and the time in between."""

    def __init__(self, efficiency: Efficiency | None = None) -> None:
        """Without `efficiency` the share of the peak is not told."""
        self.efficiency = efficiency
        self._counts: torch.Tensor | None = (
            None  # of _RATES, encoded images, pairs of attention, image tokens
        )
        self._steps = 0
        self._since: float | None = None  # nothing is measured before the first batch is asked for
        self._paused = self._waited = 0.0

    def prepare(self, parts: Prepared) -> None:
        self.efficiency = Efficiency.of(parts.model, parts.arguments)

    def before_batch(self, batch: Batch, evaluating: bool = False) -> Verdict:
        """Add a batch; padding is not counted as tokens."""
        if not evaluating:
            counts = self._counted(batch)
            self._counts = counts if self._counts is None else self._counts + counts
        return Verdict.CONTINUE

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._steps += 1

    def reading(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time that it takes to get them is taken down."""
        if self._since is None:
            self._since = time.perf_counter()
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - start
            yield batch

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave the time inside the block out of the account."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._since is not None:
                self._paused += time.perf_counter() - start

    evaluating = pausing

    def add_to_log(self, logs: dict[str, float]) -> None:
        logs |= self.read(self.context.args.device)

    def read(self, device: torch.device) -> dict[str, float]:
        """Measures since the last reading over all processes, which all call; empty before the first step.

        Rates are those of all processes together; of waiting and memory the largest of a process is told.
        """
        if self._counts is None:
            return {}
        counts = self._counts.to(device, torch.float64)
        largest = torch.tensor([self._waited, peak_memory(device)], dtype=torch.float64, device=device)
        processes = 1
        if dist.is_initialized() and dist.get_world_size() > 1:
            processes = dist.get_world_size()
            dist.all_reduce(counts)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        totals, (waited, memory) = counts.tolist(), largest.tolist()  # waits for the device
        now = time.perf_counter()
        assert self._since is not None, "batches have been waited for"
        seconds = max(now - self._since - self._paused, 1e-9)
        measures = {
            f"{name}_per_second": round(total / seconds, 2)
            for name, total in zip(_RATES, totals, strict=False)
        }
        measures["step_seconds"] = round(seconds / self._steps, 4)
        measures["data_wait_share"] = round(min(waited / seconds, 1.0), 4)
        measures["peak_memory_gib"] = round(memory / GIB, 3)
        if self.efficiency is not None:
            tokens, supervised, _, encoded, pairs, image_tokens = totals
            needed = self.efficiency.flops.total(tokens, pairs, encoded, supervised, image_tokens)
            measures["mfu"] = round(self.efficiency.utilisation(needed, seconds * processes), 4)
        self._counts, self._steps = None, 0
        self._since, self._paused, self._waited = now, 0.0, 0.0
        return measures

    def _counted(self, batch: Batch) -> torch.Tensor:
        inputs = batch.inputs
        positions, real = _positions(inputs)
        tokens = real.sum()
        images = torch.full_like(tokens, batch.images)
        encoded = images if "pixel_values" in inputs else torch.zeros_like(tokens)
        pairs = image_tokens = torch.zeros_like(tokens)
        if self.efficiency is not None:
            kinds = inputs["mm_token_type_ids"]
            pairs = visible_pairs(self.efficiency.attention, positions, kinds, real)
            image_tokens = (real & (kinds == 1)).sum()
        supervised = inputs["labels"].ne(IGNORED_LABEL).sum()
        return torch.stack([tokens, supervised, images, encoded, pairs, image_tokens])


def _positions(inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's position in its conversation [B, S], and whether it is one [B, S], not padding."""
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"]
        return mask.cumsum(dim=1) - 1, mask.bool()
    # Packed: positions count up in a conversation; padding stays at 0.
    positions = inputs["position_ids"]
    begins = torch.zeros_like(positions, dtype=torch.bool)
    begins[:, :-1] = positions[:, :-1].eq(0) & positions[:, 1:].eq(1)
    return positions, positions.gt(0) | begins


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on an accelerator, as its allocator counts them; on a CPU the whole process's."""
    if device.type != "cpu":
        return torch.get_device_module(device).max_memory_allocated(device)
    if _STATUS.is_file():  # Linux; getrusage there also counts what the process was before it became Python
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
