"""A program that has everything imported and forks trainings from itself: hundreds of starts, seconds each.

It reads JSON objects from its standard input, one a line, and answers each with one:
{"start": [flags of training], "ranks": n, "log": file, "disk": what befalls it (`disks.py`)} with {"pids": [...]},
{"wait": [pids], "timeout": s} with {"codes": [...]}, negative for a signal, None for what still runs.
"""

import json
import os
import socket
import sys
import time

import deepspeed  # noqa: F401 - what takes long to import is imported before forking
from transformers.models.clip import modeling_clip  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

import training.run
from tests.training.fault_tolerance.disks import DISKS
from utils.commands import end_process


def become_rank(number: int, of: int, port: int, flags: list[str], log: str, disk: dict | None) -> None:
    """Turn this process into a rank of a training; does not return."""
    os.setpgid(0, 0)
    with open(log, "ab", buffering=0) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(
        RANK=str(number),
        LOCAL_RANK=str(number),
        WORLD_SIZE=str(of),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    if disk and number in disk.pop("ranks", [number]):
        DISKS[disk["kind"]](**disk)
    end_process(training.run.main(flags))


def start(flags: list[str], ranks: int, log: str, disk: dict | None) -> list[int]:
    """The process ids of a new training's ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for number in range(ranks):
        pid = os.fork()
        if pid == 0:
            become_rank(number, ranks, port, flags, log, disk)
        pids.append(pid)
    return pids


def wait(pids: list[int], timeout: float) -> list[int | None]:
    """The exit codes of ranks that have ended within the time."""
    codes: dict[int, int] = {}
    end = time.monotonic() + timeout
    while len(codes) < len(pids) and time.monotonic() < end:
        for pid in pids:
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes.get(pid) for pid in pids]


if __name__ == "__main__":
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            answer = {"pids": start(order["start"], order["ranks"], order["log"], order.get("disk"))}
        else:
            answer = {"codes": wait(order["wait"], order["timeout"])}
        print(json.dumps(answer), flush=True)
