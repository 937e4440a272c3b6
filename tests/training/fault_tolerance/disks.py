"""What befalls the disk while a rank of a training saves: made in the rank's own process before it trains."""

import errno
import os
import random
import resource
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from training.checkpointing.folders import (
    MANIFEST,
    damage,
    read_manifest,
    resumable_checkpoints,
    resume_folder,
)
from training.checkpointing.writer import CheckpointWriter
from training.fault_tolerance.callback import RunGuard
from utils import atomic


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


class Saves:
    """Knows when this process saves or exports, and each operation on the disk that it does then.

    Operations are what Python asks of the system (opening for writing, mkdir, rename, remove, rmdir), fsync, and the
    swap of two names. What is followed is the thread that writes: with `background` the one beside the training.
    """

    def __init__(self, background: bool) -> None:
        self._thread: int | None = None
        self._fsync, self._exchange = os.fsync, atomic._exchange
        for name in ("_complete_in_background" if background else "save", "export"):
            setattr(
                CheckpointWriter, name, self._announced(getattr(CheckpointWriter, name), name != "export")
            )
        os.fsync = self.fsync
        atomic._exchange = self._swap
        sys.addaudithook(self._hear)

    def begin(self, is_save: bool) -> None:
        """Before a save, or an export."""

    def operation(self, name: str) -> None:
        """Before each operation of it; an error that this raises is the operation's."""

    def end(self, is_save: bool) -> None:
        """Behind it."""

    def fsync(self, descriptor: int) -> None:
        if threading.get_ident() == self._thread:
            self.operation("fsync")
        self._fsync(descriptor)

    def _swap(self, first: Path, second: Path) -> bool:
        if threading.get_ident() == self._thread:
            self.operation("swap")
        return self._exchange(first, second)

    def _hear(self, event: str, arguments: tuple) -> None:
        if threading.get_ident() != self._thread:
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            self.operation(event)

    def _announced(self, real: Callable, is_save: bool) -> Callable:
        def announced(writer: CheckpointWriter, *given: object) -> None:
            if not is_save:
                writer.finish()  # the thread beside the training is followed until then
            self.begin(is_save)
            self._thread = threading.get_ident()
            try:
                real(writer, *given)
            finally:
                self._thread = None
                self.end(is_save)

        return announced


def step_of(folder: Path | None) -> int:
    """The step of a checkpoint; -1 where there is none."""
    return -1 if folder is None else int(folder.name.split("-")[1])


class Looked(Saves):
    """Looks before every operation of saves and exports, as if the process, or the machine, stopped there.

    Counted are what a reader finds, what clearing up leaves, and what a power cut would leave, when nothing counts that
    was not brought to the disk.
    """

    def __init__(self, kind: str, output: str, background: bool) -> None:
        self.output = Path(output)
        self.tried = self.lost = 0
        self.before: Path | None = None  # the checkpoint that there was when the save began
        self._synced: dict[int, object] = {}  # by inode: what was there when it was brought to the disk
        super().__init__(background)

    def fsync(self, descriptor: int) -> None:
        super().fsync(descriptor)
        self._synced[os.fstat(descriptor).st_ino] = _content(descriptor)

    def begin(self, is_save: bool) -> None:
        self.before = resume_folder(self.output, "auto")
        self.found = {self.before}

    def operation(self, name: str) -> None:
        if self.before is None:
            return
        thread, self._thread = self._thread, None  # what is done here is no operation
        self.tried += 1
        if problem := self._problem():
            self.lost += 1
            print(f"before {name}: {problem}", flush=True)
        self._thread = thread

    def end(self, is_save: bool) -> None:
        self.operation("the end")
        if is_save and self.before is not None and len(self.found) != 2:  # the one before, then the new one
            self.lost += 1
            print(f"found were {self.found}", flush=True)
        print(f"looked: tried={self.tried} lost={self.lost}", flush=True)

    def _problem(self) -> str | None:
        found = resume_folder(self.output, "auto")
        self.found.add(found)
        if step_of(found) < step_of(self.before):
            return f"{found} is older than {self.before}"
        if (self.output / "best").exists() and (wrong := damage(self.output / "best")):
            return f"best: {wrong}"
        if not any(map(self._lasts, resumable_checkpoints(self.output))):
            return "a power cut would leave no complete checkpoint"
        copy = self.output.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.output, copy, copy_function=os.link)
        atomic.clear_leftovers(copy)
        if step_of(resume_folder(copy, "auto")) != step_of(found):
            return f"clearing up leaves something else than {found}"
        left = [path.name for path in copy.glob(".*") if path.name != ".lock"]
        return f"left over: {left}" if left else None

    def _lasts(self, folder: Path) -> bool:
        """Whether a complete checkpoint would be complete after a power cut too."""
        files = [folder / name for name in (*read_manifest(folder).files, MANIFEST)]
        places = {*files, *(file.parent for file in files)}
        if any(self._synced.get(place.stat().st_ino) != _content(place) for place in places):
            return False
        names = self._synced.get(self.output.stat().st_ino, {})
        return names.get(folder.name) == folder.stat().st_ino


def _content(place: int | Path) -> object:
    """Of a folder the names in it and what they stand for; of a file what changes with its content."""
    state = os.stat(place)
    if not stat.S_ISDIR(state.st_mode):
        return state.st_size, state.st_mtime_ns
    with os.scandir(place) as entries:
        return {entry.name: entry.inode() for entry in entries}


class Broken(Saves):
    """An error at a random operation of a save, then a save without one, and so on, `count` times."""

    KINDS = (  # the error, the operations that it hits, and whether it lasts until the save's end
        (errno.ENOSPC, {"open", "os.mkdir", "fsync"}, True),
        (errno.EROFS, {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fsync", "swap"}, True),
        (errno.EIO, {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fsync", "swap"}, False),
    )

    def __init__(self, kind: str, output: str, count: int, background: bool) -> None:
        self.output, self.count, self.rng = Path(output), count, random.Random(0)
        self.tried = self.lost = self.size = 0
        super().__init__(background)

    def begin(self, is_save: bool) -> None:
        self.before = resume_folder(self.output, "auto")
        self.seen, self.hit = 0, ""
        self.fails = is_save and bool(self.size) and self.tried < self.count and self.rng.random() < 0.7
        self.place = self.rng.randrange(self.size or 1)

    def operation(self, name: str) -> None:
        self.seen += 1
        number, hits, lasts = self.KINDS[self.tried % len(self.KINDS)]
        if self.fails and self.seen > self.place and name in hits and (lasts or not self.hit):
            self.hit = self.hit or name
            raise OSError(number, os.strerror(number))

    def end(self, is_save: bool) -> None:
        if not is_save:
            return
        found = resume_folder(self.output, "auto")
        if self.hit:
            self.tried += 1
            is_lost = step_of(found) < step_of(self.before)
        else:
            self.size = self.seen
            is_lost = step_of(found) <= step_of(self.before)  # a save on a sound disk left nothing
        self.lost += is_lost
        if is_lost:
            print(f"{self.hit or 'no error'} at {self.place}: {found} after {self.before}", flush=True)
        print(f"broken: tried={self.tried} lost={self.lost}", flush=True)


class Killed(Saves):
    """kill -9 of this process, so many seconds after its save number `save` (from 1) has begun."""

    def __init__(self, kind: str, background: bool, save: int = 0, after: float = 0.0) -> None:
        self.number, self.save, self.after = 0, save, after
        super().__init__(background)

    def begin(self, is_save: bool) -> None:
        self.number += is_save
        self.begun = time.monotonic()
        if is_save and self.number == self.save:
            print("the save to be killed begins", flush=True)
            threading.Timer(self.after, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def end(self, is_save: bool) -> None:
        if is_save:
            print(f"a save took {time.monotonic() - self.begun:.4f} s", flush=True)
        if is_save and self.number == self.save:
            print("it was quicker", flush=True)


class Narrow:
    """The kernel refuses files above 1000 bytes, as a full disk does, in this process's first save."""

    def __init__(self, kind: str) -> None:
        self._save, self._limits = CheckpointWriter.save, resource.getrlimit(resource.RLIMIT_FSIZE)
        CheckpointWriter.save = lambda *given: self.save(*given)

    def save(self, *given: object) -> None:
        CheckpointWriter.save = self._save
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, self._limits[1]))
        try:
            self._save(*given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


DISKS = {
    **dict.fromkeys(("held", "stop", "full", "kill"), Disk),
    "looked": Looked,
    "broken": Broken,
    "killed": Killed,
    "narrow": Narrow,
}
