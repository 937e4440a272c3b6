"""Three processes that watch each other, of which one leaves; the others write a line of what they noticed.

`... FILE CASE ...`, a case being "1 killed": the rank that leaves, and how.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict

import torch.distributed as dist

from training.fault_tolerance.peers import Departure, PeerWatch

RANKS = 3


def leave(case: str, watch: PeerWatch) -> None:
    """What the process does that leaves."""
    if "child" in case and os.fork() == 0:
        time.sleep(20)  # a loader's worker that outlives its process
        os._exit(0)
    if "killed" in case:
        os.kill(os.getpid(), signal.SIGKILL)
    if "failed" in case:
        watch.leave(1, "RuntimeError: out of memory")
    if "finished" in case:
        watch.leave(0)
    os._exit(0)


def live(rank: int, leaver: int, case: str, file: str, port: int) -> None:
    """One process's life."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo")
    noticed = threading.Event()
    seen = []

    def notice(departure: Departure) -> None:
        seen.append(asdict(departure))
        noticed.set()

    watch = PeerWatch(notice)
    dist.barrier()
    if rank == leaver:
        time.sleep(0.5)
        leave(case, watch)
    noticed.wait(60)
    with open(file, "a") as out:
        out.write(json.dumps({"case": case, "rank": rank, "seen": seen}) + "\n")
    os._exit(0)


if __name__ == "__main__":
    file, *cases = sys.argv[1:]
    for case in cases:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = []
        for rank in range(RANKS):
            pids.append(os.fork())
            if pids[-1] == 0:
                live(rank, int(case[0]), case[2:], file, port)
        for pid in pids:
            os.waitpid(pid, 0)
