"""Ranks, barriers, logging and seeding: library code asks here and nowhere else which process it is.

Everything works in a single process without a process group too, so callers need no special case.
"""

import logging
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


def rank() -> int:
    """This process's number among all; until the group has started, the launcher's environment tells."""
    return _group().get_rank() if _started() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return _group().get_world_size() if _started() else int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its own machine, which is also its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many processes there are on this machine; torchrun and DeepSpeed say it each in their own word."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_main_process() -> bool:
    """True in the one process that prints, and writes what is written once."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes; nothing to wait for where there is one."""
    if _started() and world_size() > 1:
        _group().barrier()


def everyone(value: T, group: Any = None) -> list[T]:
    """What each process gives, in the order of their numbers; all call, and wait for each other.

    A thread beside the main one needs a `group` of its own (`separate_group`).
    """
    if not _started() or world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    _group().all_gather_object(values, value, group=group)
    return values


def separate_group() -> Any:
    """All processes once more, for a thread that meets its like while the main threads meet too; all call.

    On CPUs, whatever the devices are. None where there is one process.
    """
    return _group().new_group(backend="gloo") if _started() and world_size() > 1 else None


def decided_by_main(decide: Callable[[], T]) -> T:
    """What the main process decides; an error that it raises is raised in all. All call."""
    decision: list[T] = []
    error: Exception | None = None
    if is_main_process():
        try:
            decision.append(decide())
        except Exception as raised:  # whatever it is, the others must not wait for a decision
            error = raised
    decision, error = everyone((decision, error))[0]
    if error is not None:
        raise error
    return decision[0]


def initialise(use_cpu: bool = False, timeout: timedelta = timedelta(minutes=30)) -> None:
    """Start the process group through DeepSpeed, under any launcher or under none (then: one process).

    Has to happen before transformers' `TrainingArguments` are made: on a CPU those would start a group that
    DeepSpeed does not know of.
    """
    import torch

    if use_cpu or not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name, value in _single_process_environment().items():
        os.environ.setdefault(name, value)
    import deepspeed  # takes seconds to import: only those who train pay for it
    from deepspeed.ops import __compatible_ops__

    # Serves only inference on CPUs: compiling it would cost the first start a minute, and need a compiler.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(timeout=timeout, verbose=False)


def shut_down() -> None:
    """End the process group, if there is one."""
    if _started():
        _group().destroy_process_group()


def get_logger(name: str) -> logging.Logger:
    """A module's logger; `configure_logging` decides what is seen of it.

    A module that runs as a command is called `__main__` by Python; its logger has the module's own name.
    """
    if name == "__main__" and (spec := getattr(sys.modules[name], "__spec__", None)):
        name = spec.name
    return logging.getLogger(name)


def configure_logging(level: int = logging.INFO) -> None:
    """Show this project's log lines on stderr, as bare text: for entry points, not for libraries.

    INFO lines come from the main process only; warnings come from all, the others' with their rank.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RankFilter())
    handler.setFormatter(logging.Formatter("%(message)s"))
    for package in ("utils", "training", "chat", "eval", "helper"):
        logger = logging.getLogger(package)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
    # DeepSpeed calls collectives by names that torch 2.14 warns of, at every call.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators, with the same seed in every process."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class _RankFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if is_main_process():
            return True
        if record.levelno >= logging.WARNING:
            record.msg = f"[rank {rank()}] {record.msg}"
            return True
        return False


def _group() -> ModuleType:
    return sys.modules["torch.distributed"]


def _started() -> bool:
    """Whether there is a process group: where nobody has imported torch, there is none."""
    return "torch.distributed" in sys.modules and _group().is_available() and _group().is_initialized()


def _single_process_environment() -> dict[str, str]:
    if "RANK" in os.environ:
        return {}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
