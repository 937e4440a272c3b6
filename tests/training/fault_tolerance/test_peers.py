"""Every process hears at once of another that left, and how it did."""

import os
import signal
import threading
import time

import pytest
import torch.distributed as dist

from tests.ranks import free_port
from training.fault_tolerance.peers import Departure, PeerWatch

RANKS = 3


def leave(how: str, watch: PeerWatch) -> None:
    if "child" in how and os.fork() == 0:
        time.sleep(20)  # a loader's worker that outlives its process
        os._exit(0)
    if "killed" in how:
        os.kill(os.getpid(), signal.SIGKILL)
    watch.leave(*((1, "RuntimeError: out of memory") if how == "failed" else (0,)))
    os._exit(0)


def live(rank: int, leaver: int, how: str, port: int, heard) -> None:
    """One process's life."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo")
    seen: list[Departure] = []
    noticed = threading.Event()
    watch = PeerWatch(lambda departure: (seen.append(departure), noticed.set()))
    if rank == leaver:  # at once: those that it leaves must be connected already
        leave(how, watch)
    noticed.wait(60)
    heard.put((seen[0].rank, seen[0].code, seen[0].reason))  # the next may be of one that heard, and ended
    heard.close()
    heard.join_thread()
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("leaver", [0, 2])
@pytest.mark.parametrize("how", ["killed", "killed with a child", "failed", "finished"])
def test_all_hear_of_one_that_left(forks, leaver, how):
    port, heard = free_port(), forks.context.Queue()
    ranks = [
        forks.context.Process(target=live, args=(rank, leaver, how, port, heard)) for rank in range(RANKS)
    ]
    for each in ranks:
        each.start()
    code = {"failed": 1, "finished": 0}.get(how)
    expected = (leaver, code, "RuntimeError: out of memory" if code else "")
    assert [heard.get(timeout=120) for _ in range(RANKS - 1)] == [expected] * 2
    for each in ranks:
        each.join()
