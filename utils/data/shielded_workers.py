"""Workers of data loaders that outlive the signals which ask a run to stop.

Launchers send a signal to every process that they find below them. A worker that died of it would bring its process
down before anything is saved.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

from utils.data.shared_memory import SharedBatches, require_shared_memory

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""From launchers and schedulers that end a job, from schedulers that warn of it, and from Ctrl-C, which a terminal
sends to all processes.
"""


def shielded(workers: int, collate: Callable[[Any], Any]) -> dict[str, Any]:
    """The arguments with which a data loader has so many shielded workers, and makes batches by `collate`.

    Raises `SharedMemoryError` where the machine has too little for any worker.
    """
    if workers:
        require_shared_memory()
    return {
        "num_workers": workers,
        "worker_init_fn": shield_worker,
        "multiprocessing_context": shielded_context() if workers else None,
        "collate_fn": SharedBatches(collate),
    }


def shield_worker(worker: int) -> None:
    """A `worker_init_fn` for data loaders: their workers end when their process says so, and not before.

    From its birth until here `shielded_context` sees to that.
    """
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


class _ShieldedProcess(ForkProcess):
    """Is born with the signals blocked: they may come before anything of ours runs in a new worker."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _ShieldedContext(ForkContext):
    Process = _ShieldedProcess


def shielded_context() -> ForkContext | None:
    """A `multiprocessing_context` for the workers of `shield_worker`; None where workers are not forked."""
    return _ShieldedContext() if multiprocessing.get_start_method() == "fork" else None


def _end_with_parent() -> None:
    """Only waiting for a signal tells who has sent it; a handler in Python is not told."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
