"""Processes of several ranks on this machine's CPU."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ON_CPUS = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What a launcher sets for one rank."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {**os.environ, **ON_CPUS, "MASTER_ADDR": "127.0.0.1"} | {
        name: str(value) for name, value in places.items()
    }


def run_ranks(words: Sequence[object], ranks: int, folder: Path, seconds: float) -> tuple[list[int], str]:
    """Python with these words on so many ranks: their exit codes, and the ends of what they printed.

    Where one fails, or the time is over, the others are killed: they would wait for ever.
    """
    port = free_port()
    logs = [folder / f"{rank}.log" for rank in range(ranks)]
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env=rank_environment(rank, ranks, port),
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    end = time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        time.sleep(0.2)
        if any(process.poll() not in (None, 0) for process in processes) or time.monotonic() > end:
            for process in processes:
                process.send_signal(signal.SIGKILL)
    codes = [process.wait() for process in processes]
    return codes, "\n".join(log.read_text()[-3000:] for log in logs)
