"""Workers that outlive what asks a run to stop."""

import signal
import subprocess
import sys
import time

import psutil
import pytest
from torch.utils.data import DataLoader

from utils.data import workers as workers_module
from utils.data.workers import signal_safe_context, signal_safe_worker


def shield_late(worker: int) -> None:
    """On a busy machine a worker may have to wait for a core."""
    time.sleep(2)
    signal_safe_worker(worker)


@pytest.mark.parametrize("shield", [signal_safe_worker, shield_late])
def test_workers_of_a_loader_outlive_a_launchers_signal(shield):
    loader = DataLoader(
        range(2000),
        num_workers=2,
        worker_init_fn=shield,
        multiprocessing_context=signal_safe_context(),
        collate_fn=list,
    )
    others = set(psutil.Process().children())
    batches = iter(loader)
    got = next(batches) if shield is signal_safe_worker else []
    workers = set(psutil.Process().children()) - others
    assert len(workers) == 2
    for worker in workers:  # not by their parent: by a launcher, which is another process
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            subprocess.run(
                [sys.executable, "-c", f"import os; os.kill({worker.pid}, {int(number)})"], check=True
            )
    for batch in batches:
        got += batch
    assert got == list(range(2000))
    batches = iter(loader)
    next(batches)
    workers = set(psutil.Process().children()) - others
    del batches  # the loader's own end
    end = time.monotonic() + 60
    while any(worker.is_running() and worker.status() != "zombie" for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


class Slow:
    """Items that take their time."""

    def __len__(self) -> int:
        return 600

    def __getitem__(self, index: int) -> int:
        time.sleep(0.005)
        return index


def test_so_do_those_that_count_tokens(monkeypatch):
    monkeypatch.setattr(workers_module, "_WORTH_WORKERS", 10)
    monkeypatch.setattr(workers_module, "_BATCH", 10)
    monkeypatch.setattr(workers_module, "cores", lambda: 2)
    others = set(psutil.Process().children())
    items = workers_module.parallel_map(Slow(), "counting")
    got = [next(items)]
    workers = set(psutil.Process().children()) - others
    assert len(workers) == 2
    for worker in workers:
        subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, 15)"], check=True)
    assert got + list(items) == list(range(600))
