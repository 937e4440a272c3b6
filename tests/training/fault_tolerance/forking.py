"""A program that has everything imported and forks trainings from itself: hundreds of starts, seconds each.

It reads JSON objects from its standard input, one a line, and answers each with one:
{"start": [flags of training], "ranks": n, "log": file, "disk": what befalls it (`Disk`)} with {"pids": [...]},
{"wait": [pids], "timeout": s} with {"codes": [...]}, negative for a signal, None for what still runs.
"""

import errno
import json
import os
import signal
import socket
import sys
import threading
import time

import deepspeed  # noqa: F401 - what takes long to import is imported before forking

import training.run
from training.checkpointing.writer import CheckpointWriter
from training.fault_tolerance.callback import RunGuard
from utils.commands import end_process


class Disk:
    """What befalls a rank's thread that writes checkpoints in the background, at its fsyncs.

    kind: "held": each write waits at its first fsync until the training has made another step, or waits for it; "stop":
    that too, and SIGTERM comes while the first one waits; "full": there is no space from fsync number `at` on, for the
    rest of that write; "kill": SIGKILL at fsync number `at`.
    """

    def __init__(self, kind: str, at: int = 0) -> None:
        self.kind, self.at, self.count = kind, at, 0
        self.changed = threading.Condition()
        self.steps, self.waited_for = 0, False
        self.held: threading.Thread | None = None
        self.full: threading.Thread | None = None
        self._fsync, self._step = os.fsync, RunGuard.on_step_end
        self._save, self._finish = CheckpointWriter.save, CheckpointWriter.finish
        os.fsync = self.fsync
        RunGuard.on_step_end = lambda *given, **named: self.step(*given, **named)
        CheckpointWriter.save = lambda *given: self.save(*given)
        CheckpointWriter.finish = lambda writer: self.finish(writer)

    def save(self, writer: CheckpointWriter, *given: bool) -> None:
        before = self.held
        self._save(writer, *given)
        if self.kind in ("held", "stop") and given == (True,):
            with self.changed:
                self.changed.wait_for(lambda: self.held is not before)  # no step before it is held

    def step(self, *given: object, **named: object) -> None:
        self._step(*given, **named)
        with self.changed:
            self.steps += 1
            self.changed.notify_all()

    def finish(self, writer: CheckpointWriter) -> None:
        with self.changed:
            self.waited_for = True
            self.changed.notify_all()
        self._finish(writer)
        self.waited_for = False

    def fsync(self, descriptor: int) -> None:
        thread = threading.current_thread()
        if thread.name.startswith("checkpoint"):
            self.count += 1
            if self.kind in ("held", "stop") and thread is not self.held:
                self.hold(thread)
            if self.kind == "kill" and self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "full" and self.count == self.at:
                self.full = thread
            if thread is self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fsync(descriptor)

    def hold(self, thread: threading.Thread) -> None:
        print("a write is held back", flush=True)
        with self.changed:
            before, first, self.held = self.steps, self.held is None, thread
            self.changed.notify_all()
            if self.kind == "stop" and first:
                os.kill(os.getpid(), signal.SIGTERM)
            self.changed.wait_for(lambda: self.waited_for or self.steps > before)


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
        Disk(**disk)
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
