"""The share of the hardware's peak that training uses: model FLOP/s utilisation (MFU)."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from training.arguments.parser import VisualChatTrainingArguments
from training.metrics.flops import StepFlops
from utils.distributed import get_logger

logger = get_logger(__name__)

# Dense matrix products in bf16 (fp16 where the card has no bf16) with sums in fp32, in TFLOP/s, from the makers'
# data sheets; where these give numbers with sparsity, half of them. The first row whose words are all in the
# device's name counts.
_TFLOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("GB200",), 2500.0),
    (("B200",), 2250.0),
    (("H200", "NVL"), 835.5),
    (("H200",), 989.4),
    (("GH200",), 989.4),
    (("H100", "PCIe"), 756.5),
    (("H100", "NVL"), 835.5),
    (("H100",), 989.4),
    (("H800", "PCIe"), 756.5),
    (("H800",), 989.4),
    (("H20",), 148.0),
    (("A100",), 312.0),
    (("A800",), 312.0),
    (("A30",), 165.0),
    (("A40",), 149.7),
    (("A10G",), 70.0),
    (("A10",), 125.0),
    (("L40S",), 362.0),
    (("L40",), 181.0),
    (("L4",), 121.0),
    (("RTX", "6000", "Ada"), 364.2),
    (("RTX", "A6000"), 154.8),
    (("RTX", "4090"), 165.2),
    (("RTX", "3090"), 71.0),
    (("V100", "PCIe"), 112.0),
    (("V100",), 125.0),
    (("T4",), 65.0),
    (("MI325X",), 1307.4),
    (("MI300X",), 1307.4),
    (("MI250X",), 191.5),  # a card is two devices
)


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


def peak_flops(device_name: str) -> float | None:
    """A device's peak in FLOP/s at bf16; None for one that is not in the list."""
    words = device_name.replace("-", " ").lower().split()
    for known, tflops in _TFLOPS:
        if all(word.lower() in words for word in known):
            return tflops * 1e12
    return None
