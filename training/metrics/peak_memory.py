"""The most memory that this process has used: of its accelerator, or of the machine where it has none."""

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


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
