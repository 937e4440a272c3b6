"""Workers of data loaders: they outlive the signals which ask a run to stop, and say where shared memory is too little.

Launchers send a signal to every process that they find below them. A worker that died of it would bring its process
down before anything is saved.

Workers hand over their batches through /dev/shm, of which containers have little (docker: 64 MB). Where it is full,
torch loses the batch in a thread of the worker, and the loader waits for it for ever; so workers put their batches
there themselves, where an error is seen.
"""

import errno
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from utils.commands import in_units, progress
from utils.data.spec import DataError
from utils.distributed import cores, get_logger

logger = get_logger(__name__)

_Item = TypeVar("_Item", covariant=True)

_BATCH = 256
_WORTH_WORKERS = 5000  # items; fewer are done sooner than workers have started

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""From launchers and schedulers that end a job, from schedulers that warn of it, and from Ctrl-C, which a terminal
sends to all processes.
"""
FOLDER = "/dev/shm"
_LEAST = 1 << 20  # bytes that workers need for their locks and for the smallest batches
_REMEDY = "give --dataloader_num_workers 0, or make it larger (docker run --shm-size 8g)"


def parallel_map(items: Dataset[_Item], description: str) -> Iterator[_Item]:
    """All items in order, made by as many processes as this one may use cores, with `progress` on the way.

    What raises in a worker raises here.
    """
    total = len(items)
    workers = cores() if total >= _WORTH_WORKERS else 0
    start = time.perf_counter()
    # A generator of its own: the global one must stay in step with other processes, who do not come here.
    batches = DataLoader(
        items,
        _BATCH,
        generator=torch.Generator().manual_seed(0),
        **signal_safe(workers, list),
    )
    with progress(description, total) as advance:
        for batch in batches:
            yield from batch
            advance(len(batch))
    if workers:
        logger.info("%s: %s in %.0f s", description, f"{total:,}", time.perf_counter() - start)


def signal_safe(workers: int, collate: Callable[[Any], Any]) -> dict[str, Any]:
    """The arguments with which a data loader has so many signal-safe workers, and makes batches by `collate`.

    Raises `SharedMemoryError` where the machine has too little for any worker.
    """
    if workers:
        require_shared_memory()
    return {
        "num_workers": workers,
        "worker_init_fn": signal_safe_worker,
        "multiprocessing_context": signal_safe_context() if workers else None,
        "collate_fn": SharedBatches(collate),
    }


def signal_safe_worker(worker: int) -> None:
    """A `worker_init_fn` for data loaders: their workers end when their process says so, and not before.

    From its birth until here `signal_safe_context` sees to that.
    """
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


class _SignalSafeProcess(ForkProcess):
    """Is born with the signals blocked: they may come before anything of ours runs in a new worker."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _SignalSafeContext(ForkContext):
    Process = _SignalSafeProcess


def signal_safe_context() -> ForkContext | None:
    """A `multiprocessing_context` for the workers of `signal_safe_worker`; None where workers are not forked."""
    return _SignalSafeContext() if multiprocessing.get_start_method() == "fork" else None


def _end_with_parent() -> None:
    """Only waiting for a signal tells who has sent it; a handler in Python is not told."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class SharedMemoryError(DataError):
    """There is too little shared memory for workers; the message is one line and says what to do."""


def require_shared_memory(needed: int = _LEAST) -> None:
    """Raises `SharedMemoryError` where fewer bytes are free; does nothing on systems without such a folder."""
    if not os.path.isdir(FOLDER):
        return
    free = shutil.disk_usage(FOLDER).free
    if free < max(needed, _LEAST):
        raise SharedMemoryError(
            f"{FOLDER}, the shared memory through which workers hand over their batches, has {in_units(free)} free,"
            f" and {in_units(max(needed, _LEAST))} are needed: {_REMEDY}"
        )


@dataclass(frozen=True)
class SharedBatches:
    """A `collate_fn` that puts the batches of another one into shared memory, within workers.

    Raises `SharedMemoryError` where they do not fit.
    """

    collate: Callable[[Any], Any]

    def __call__(self, samples: Any) -> Any:
        batch = self.collate(samples)
        if torch.utils.data.get_worker_info() is not None:
            _share(batch)
        return batch


def _share(batch: Any) -> None:
    if isinstance(batch, torch.Tensor):
        try:
            batch.share_memory_()
        except RuntimeError as error:  # torch's text ends with the system's, and its number
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            raise SharedMemoryError(
                f"{FOLDER}, the shared memory through which workers hand over their batches, is full"
                f" ({in_units(shutil.disk_usage(FOLDER).total)}; a batch has"
                f" {in_units(batch.numel() * batch.element_size())}): {_REMEDY}, or take smaller batches"
            ) from error
    elif isinstance(batch, dict):
        for value in batch.values():
            _share(value)
    elif is_dataclass(batch):
        _share(vars(batch))
    elif isinstance(batch, list | tuple):
        for value in batch:
            _share(value)
