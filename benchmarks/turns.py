"""Contenders that take turns in one process, and a table of how long each takes."""

import argparse
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


def add_run_flags(parser: argparse.ArgumentParser, rounds: int, dtype: str | None = None) -> None:
    """How often and where a benchmark measures; `dtype`: the usual number type, of one that has a flag for it."""
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each contender is timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    if dtype:
        parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=dtype)


def clock() -> float:
    """Seconds: of this process's processors where it runs on one thread of a CPU, so that others on the machine
    disturb little; of the wall otherwise."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(work: Callable[[], object]) -> float:
    """How long it takes, in seconds."""
    started = clock()
    work()
    return clock() - started


def take_turns(contenders: dict[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Each contender is told the number of the round and returns what it measured; one unmeasured round first.

    One that does not fit into a GPU's memory drops out, and is not among the results.
    """
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-1, rounds):
        for name in list(measured):
            try:
                value = contenders[name](number)
            except torch.OutOfMemoryError:
                print(f"{name}: it does not fit into memory", file=sys.stderr)
                del measured[name]
                continue
            if number >= 0:
                measured[name].append(value)
    return measured


def print_ratios(measured: dict[str, list[float]], unit: str, scale: float, reference: str) -> None:
    """Median, least and most, and how many times the reference's median that is."""
    width = max(map(len, measured))
    base = statistics.median(measured[reference])
    for name, values in measured.items():
        median = statistics.median(values)
        spread = f"{min(values) * scale:,.1f} to {max(values) * scale:,.1f}"
        print(
            f"  {name:<{width}}  {median * scale:>10,.1f} {unit}  ({spread})"
            f"  {median / base:>6.2f} times {reference}"
        )


def print_machine() -> None:
    """What it ran on, and the command."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    clocked = "wall" if torch.cuda.is_available() or torch.get_num_threads() > 1 else "processor"
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} of {os.cpu_count()} cores,"
        f" {clocked} time; python -m {_module()} {' '.join(sys.argv[1:])}"
    )


def peak_memory() -> str:
    """The most memory this process has had."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB resident"


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second that this device reads and writes in a large copy, the best of several."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(timed(lambda: target.copy_(source)) for _ in range(5))


def product_speed(dtype: torch.dtype, device: str) -> float:
    """Operations a second of a large matrix product here, the best of several: what attention can hope for."""
    side = 8192 if device == "cuda" else 1536
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / min(timed(lambda: left @ right) for _ in range(6))


def _processor() -> str:
    """The name that a CPU gives itself, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def _module() -> str:
    return f"benchmarks.{os.path.splitext(os.path.basename(sys.argv[0]))[0]}"
