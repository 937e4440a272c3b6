"""The share of the hardware's peak that training uses (model FLOP/s utilisation, MFU): whether it can be told."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from training.arguments.parser import VisualChatTrainingArguments
from training.metrics.flops import StepFlops
from training.metrics.peak_flops import peak_flops
from utils.distributed import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Efficiency:
    """What it takes to turn counts and seconds into a share of the peak."""

    flops: StepFlops
    attention: str  # mmca, cross or causal
    peak: float  # FLOP/s of a device

    @classmethod
    def of(cls, model: PreTrainedModel, args: VisualChatTrainingArguments) -> "Efficiency | None":
        """None on a CPU and on a device that is not known, unless `--peak_tflops` says what it can do."""
        peak = args.peak_tflops * 1e12 or _known_peak(args.device, args.dtype)
        return None if peak is None else cls(StepFlops.of(model), model.config.attention, peak)

    def utilisation(self, operations: float, device_seconds: float) -> float:
        """The share, from 0 to 1, that so many operations in so many seconds, times devices, are of the peak."""
        return operations / (device_seconds * self.peak)


def _known_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    if device.type == "cpu":
        return None
    name = torch.get_device_module(device).get_device_name(device)
    peak = peak_flops(name) if dtype != torch.float32 else None
    if peak is None:
        precision = str(dtype).removeprefix("torch.")
        logger.info("no MFU: the peak of %s in %s is not listed; give it by --peak_tflops", name, precision)
    return peak
