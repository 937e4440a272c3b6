"""Trainings that are looked at after every change to the disk, given broken disks, and killed while they save.

`python -m tests.training.checkpointing.crash_runs SCENARIO FILE`: FILE is JSON with the training's command line
(`train`), its output folder (`output`), and `count` and `seed` of a scenario; with `--save_in_background true` what is
followed and killed is the thread that writes, while training goes on. Everything is imported once; each training is a
fork. Prints `SCENARIO: tried=N lost=M`, and ends with 1 where something was lost.
"""

import errno
import json
import logging
import os
import random
import select
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import deepspeed  # noqa: F401 (what a training needs, imported once)
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.models.clip import modeling_clip  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

from tests.training.checkpointing.syscalls import Change, ProcessEndedError, Tracer
from training.checkpointing.folders import damage, read_manifest, resumable_checkpoints, resume_folder
from training.checkpointing.writer import CheckpointWriter
from training.exit_codes import RANK_LOST
from training.run import main as train
from training.trainer import VisualChatTrainer
from utils.atomic import clear_leftovers

RESTING = "x"  # the folder's name for copies that a recovery is tried on


class Training:
    """A forked training whose first rank waits before and after each save until it is let go on.

    Where it saves in the background, the thread that writes waits, and the training goes on.
    """

    def __init__(self, work: Callable[[], int], log: Path, ranks: int = 1, background: bool = False) -> None:
        says, hears = os.pipe(), os.pipe()
        launched = _launched(ranks)
        self.pids = []
        for environment in launched:
            pid = os.fork()
            if pid == 0:
                self._run(work, log, environment, background, says[1], hears[0])
            self.pids.append(pid)
        os.close(says[1])
        os.close(hears[0])
        self._said, self._hears = says[0], hears[1]
        self.thread = self.pid
        """That is at what `hear` heard last."""

    @property
    def pid(self) -> int:
        """The first rank's."""
        return self.pids[0]

    @staticmethod
    def _run(
        work: Callable[[], int],
        log: Path,
        environment: dict[str, str],
        background: bool,
        says: int,
        hears: int,
    ) -> None:
        code = 70
        logging.disable(logging.NOTSET)
        try:
            output = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.update(environment)
            save = "_complete_in_background" if background else "save"
            for name in (save, "export") if environment.get("RANK", "0") == "0" else ():
                real = getattr(CheckpointWriter, name)

                def announced(self, *arguments, real=real, name=name):
                    if name == "export":
                        self.finish()
                    word = "e" if name == "export" else "s"
                    os.write(says, f"{word}{threading.get_native_id():09}".encode())
                    os.read(hears, 1)
                    try:
                        real(self, *arguments)
                    finally:
                        os.write(says, b"]")
                        os.read(hears, 1)

                setattr(CheckpointWriter, name, announced)
            code = work()
        finally:
            os._exit(code)

    def hear(self, timeout: float = 1800) -> str:
        """ "s" or "e" where saving or exporting begins, "]" where it has ended, "" at the training's end."""
        if not select.select([self._said], [], [], timeout)[0]:
            raise TimeoutError("the training says nothing")
        heard = os.read(self._said, 1).decode()
        if heard and heard != "]":
            self.thread = int(os.read(self._said, 9))
        return heard

    def await_save(self) -> None:
        """Let it go on until a save begins."""
        while (heard := self.hear()) != "s":
            if not heard:
                raise RuntimeError("the training ended too early: give it more steps")
            self.go_on()

    def said(self) -> bool:
        """Whether there is something to hear."""
        return bool(select.select([self._said], [], [], 0)[0])

    def go_on(self) -> None:
        os.write(self._hears, b"g")

    def end(self) -> int:
        """Let it run to its end without stopping; its exit code."""
        while self.hear():
            self.go_on()
        return max(abs(code) for code in self._wait())

    def kill(self, ranks: Sequence[int] = (0,)) -> bool:
        """Kill some ranks, upon which the others end too; whether that was before the save had ended."""
        for rank in ranks:
            os.kill(self.pids[rank], signal.SIGKILL)
        codes = self._wait()
        assert all(code in (-signal.SIGKILL, RANK_LOST) for code in codes), codes
        in_time = not (self.said() and self.hear() == "]")
        os.close(self._said)
        os.close(self._hears)
        return in_time

    def _wait(self) -> list[int]:
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]


def _launched(ranks: int) -> list[dict[str, str]]:
    """What a launcher sets for each rank; a training alone needs none."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    names = ("RANK", "LOCAL_RANK")
    return [{**meeting, "WORLD_SIZE": str(ranks), **dict.fromkeys(names, str(rank))} for rank in range(ranks)]


def newest(output: Path) -> str | None:
    """The checkpoint that a resume would take now, every file of it read."""
    folder = resume_folder(output, "auto")
    return folder.name if folder else None


def _in_background(task: dict) -> bool:
    return "--save_in_background" in task["train"]


# A look after every change


class Disk:
    """What would be left after a power cut: contents that were not synced may be gone, names may be old ones."""

    def __init__(self, output: Path) -> None:
        self.output = str(output)
        self._unsynced: set[int] = set()  # inodes
        self._pending: dict[str, set[str]] = {}  # names changed in a folder since it was synced, by folder

    def note(self, change: Change) -> None:
        if change.name in ("write", "truncate", "allocate", "create"):
            with suppress(FileNotFoundError):
                self._unsynced.add(os.stat(change.paths[0]).st_ino)
        elif change.name == "fsync":
            self._unsynced.discard(os.stat(change.paths[0]).st_ino)
            self._pending.pop(os.path.realpath(change.paths[0]), None)
        if change.name in ("create", "mkdir", "rename", "unlink", "rmdir"):
            for path in change.paths:
                folder, name = os.path.split(path)
                folder = os.path.realpath(folder)
                self._pending.setdefault(folder, set()).add(name)
        if change.name == "rename":  # what was pending within goes along
            moved = {one: two for one, two in zip(change.paths, reversed(change.paths), strict=True)}
            for folder in list(self._pending):
                for one, two in moved.items():
                    if folder == one or folder.startswith(one + "/"):
                        self._pending[two + folder[len(one) :]] = self._pending.pop(folder)
                        break

    def lasting(self, folder: Path) -> bool:
        """Whether a complete folder would be complete after a power cut too."""
        if folder.name in self._pending.get(self.output, ()):
            return False
        files = [folder / name for name in (*read_manifest(folder).files, "manifest.json")]
        folders = {str(file.parent) for file in files}
        if any(self._pending.get(each) for each in folders):
            return False
        return not any(os.stat(file).st_ino in self._unsynced for file in files)


def look(task: dict) -> tuple[int, int]:
    """Saves and exports, each looked at after every change as if the process, or the machine, stopped there."""
    output = Path(task["output"])
    training = Training(partial(train, task["train"]), output.with_name("log"), 1, _in_background(task))
    tried = lost = saves = 0
    while begun := training.hear():
        saves += begun == "s"
        if saves < 2 or begun == "]":
            training.go_on()
            continue
        disk, before = Disk(output), newest(output)
        seen = {before}

        def after(change: Change, disk: Disk = disk, before: str = before, seen: set = seen) -> None:
            nonlocal tried, lost
            if change.name not in ("write", "fsync", "rename", "unlink", "rmdir", "mkdir", "create"):
                return
            disk.note(change)
            tried += 1
            problem = _problem(output, disk, before)
            if problem:
                lost += 1
                print(f"after {change}: {problem}", flush=True)
            seen.add(newest(output))

        tracer = Tracer(training.thread, output)
        tracer.follow(training.go_on, until=training.said, after=after)
        if begun == "s":
            assert len(seen) == 2, seen  # the earlier checkpoint, then the new one
    assert os.waitstatus_to_exitcode(os.waitpid(training.pid, 0)[1]) == 0, (
        output.with_name("log")
    ).read_text()[-3000:]
    return tried, lost


def _problem(output: Path, disk: Disk, before: str) -> str | None:
    found = newest(output)
    if found is None:
        return "no complete checkpoint"
    if int(found.split("-")[1]) < int(before.split("-")[1]):
        return f"{found} is older than {before}"
    if (output / "best").exists() and damage(output / "best"):
        return f"best: {damage(output / 'best')}"
    if not any(disk.lasting(folder) for folder in resumable_checkpoints(output)):
        return "a power cut would leave no complete checkpoint"
    copy = output.parent / RESTING
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(output, copy, copy_function=os.link)
    clear_leftovers(copy)
    if newest(copy) != found:
        return f"after clearing up {newest(copy)}, not {found}"
    left = [path.name for path in copy.glob(".*") if path.name != ".lock"]
    return f"left over: {left}" if left else None


# Broken disks

_WRITING = ("write", "allocate", "truncate", "create", "mkdir")


def _disk_full(change: Change) -> int | None:
    return errno.ENOSPC if change.name in _WRITING else None


def _read_only(change: Change) -> int | None:
    return errno.EROFS


def _broken(change: Change) -> int | None:
    return errno.EIO


_KINDS: dict[
    str, tuple[Callable[[Change], int | None], bool]
] = {  # what fails, and whether it goes on failing
    "disk full": (_disk_full, True),
    "read-only": (_read_only, True),
    "I/O error": (_broken, False),
}


def errors(task: dict) -> tuple[int, int]:
    """A save with an error at a random place in it, then one without, and so on; training goes on throughout.

    Its log is on another disk: what is said of an error is counted.
    """
    output, rng = Path(task["output"]), random.Random(task["seed"])
    words = [*task["train"], "--max_failed_saves", "1000"]
    training = Training(partial(train, words), output.with_name("log"), 1, _in_background(task))
    tried, lost, size = 0, 0, 0
    while begun := training.hear():
        if begun != "s" or tried == task["count"]:
            training.go_on()
            continue
        before, count = newest(output), 0
        failing = bool(size) and rng.random() < 0.7
        kind = list(_KINDS)[tried % len(_KINDS)]
        fails, lasting = _KINDS[kind]
        place, hit = rng.randrange(size or 1), []

        def interfere(change: Change, place=place, hit=hit, fails=fails, lasting=lasting) -> int | None:
            nonlocal count
            count += 1
            if count <= place or (hit and not lasting):
                return None
            number = fails(change)
            if number:
                hit.append(change)
            return number

        def counted(change: Change) -> None:
            nonlocal count
            count += 1

        tracer = Tracer(training.thread, output)
        tracer.follow(training.go_on, until=training.said, before=interfere if failing else counted)
        size = size if failing else count
        if hit:
            tried += 1
            found = newest(output)
            if before and (not found or int(found.split("-")[1]) < int(before.split("-")[1])):
                lost += 1
                print(f"{kind} at {hit[0]}: {found} after {before}", flush=True)
        elif not failing and newest(output) == before:
            lost += 1
            print("a save on a sound disk left nothing", flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(training.pid, 0)[1])
    log = (output.with_name("log")).read_text()
    assert code == 0, log[-3000:]
    assert tried == task["count"], f"the training was too short: {tried}"
    assert not list(output.glob(".checkpoint*")), (
        "saves that failed left something on a disk that is sound again"
    )
    print(f"{log.count('could not be written')} saves failed and were reported", flush=True)
    return tried, lost


# kill -9

Work = Callable[[Path, int, int], int]
"""A run: its output folder, its last step, and how many steps lie between two saves. Goes on where there is one."""


def kill(task: dict) -> tuple[int, int]:
    """Of all kills a fifth hit a run of two ranks at ZeRO-3, one of them or both at once."""
    rng, sharded = random.Random(task["seed"]), task["count"] // 5
    kinds = [
        (1, task["count"] - sharded, []),
        (2, sharded, ["--zero_stage", "3", "--per_device_train_batch_size", "2"]),
    ]
    counts = []
    for ranks, kills, flags in kinds:
        folder = Path(task["output"], f"ranks{ranks}")
        run = partial(_whole_training, [*task["train"], *flags])
        counts.append(_kill(run, ranks, kills, folder, rng, _in_background(task)))
        print(f"kill with {ranks} ranks: tried={counts[-1][0]} lost={counts[-1][1]}", flush=True)
    tried, lost = map(sum, zip(*counts, strict=True))
    return tried, lost


def _whole_training(words: list[str], output: Path, steps: int, apart: int) -> int:
    given = {"output_dir": output, "max_steps": steps, "save_steps": apart, "resume_from_checkpoint": "auto"}
    return train([*words, *(word for name, value in given.items() for word in (f"--{name}", str(value)))])


def kill_prepared(task: dict) -> tuple[int, int]:
    """Every kill hits a fork of one training which has read its data and made its model: ten times quicker to begin.

    A group without threads of its own stands in for the processes' meeting, since a fork would not have them.
    """
    folder, real, counts = Path(task["output"], "prepared"), VisualChatTrainer.train, []

    def fork_instead(trainer: VisualChatTrainer, resume_from_checkpoint: str | None) -> NoReturn:
        def run(output: Path, steps: int, apart: int) -> int:
            trainer.args.output_dir, trainer.args.max_steps = str(output), steps
            trainer.args.save_steps = apart
            output.mkdir(exist_ok=True)
            clear_leftovers(output)
            found = resume_folder(output, "auto")
            real(trainer, resume_from_checkpoint=str(found) if found else None)
            trainer.finish_saving()
            return 0

        rng = random.Random(task["seed"])
        counts.append(_kill(run, 1, task["count"], folder, rng, _in_background(task)))
        raise KilledEnoughError

    VisualChatTrainer.train = fork_instead
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    with suppress(KilledEnoughError):
        train([*task["train"], "--output_dir", str(folder / "parent")])
    return counts[0]


class KilledEnoughError(BaseException):
    """Nothing is left to do for the training that was forked from."""


def _kill(
    run: Work, ranks: int, kills: int, folder: Path, rng: random.Random, background: bool
) -> tuple[int, int]:
    """Killed at random moments of random saves, gone on from what was left, to the losses of a run never killed."""
    output, whole, log = folder / "run", folder / "whole", folder / "log"
    folder.mkdir(exist_ok=True)
    steps = kills * 2 + 20
    assert Training(partial(run, whole, steps, steps), log, ranks, background).end() == 0, log.read_text()[
        -3000:
    ]
    expected = _losses(whole / f"checkpoint-{steps}")
    tried = lost = 0
    duration = 0.1
    while tried < kills:
        before = newest(output)
        training = Training(partial(run, output, steps, 1), log, ranks, background)
        for _ in range(rng.choice((0, 1, 1, 2))):
            duration = _whole_save(training)
        training.await_save()
        training.go_on()
        time.sleep(rng.uniform(0, duration))
        if not training.kill(rng.choice([[0], [1], [0, 1]]) if ranks > 1 else [0]):
            continue  # it was quicker
        tried += 1
        found = newest(output)
        if tried % 10 == 0:
            print(f"{tried} killed, {lost} lost, {found}", flush=True)
        if before and (not found or int(found.split("-")[1]) < int(before.split("-")[1])):
            lost += 1
            print(f"{found} after {before}", flush=True)
        if found and _losses(output / found) != expected[: int(found.split("-")[1])]:
            lost += 1
            print(f"{found}: other losses than a run that was never killed", flush=True)
    print(f"reached {newest(output)}, as a run that was never killed", flush=True)
    return tried, lost


def _whole_save(training: Training) -> float:
    training.await_save()
    begun = time.monotonic()
    training.go_on()
    assert training.hear() == "]"
    training.go_on()
    return time.monotonic() - begun


def _losses(checkpoint: Path) -> list[float]:
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [line["loss"] for line in history if "loss" in line]


SCENARIOS = {"look": look, "errors": errors, "kill": kill, "kill_prepared": kill_prepared}


def main(scenario: str, path: Path) -> int:
    logging.disable(logging.CRITICAL)  # the readers' warnings; a training's come back in its own process
    task = json.loads(path.read_text())
    Path(task["output"]).mkdir()
    try:
        tried, lost = SCENARIOS[scenario](task)
    except ProcessEndedError:
        print(Path(task["output"]).with_name("log").read_text()[-3000:], flush=True)
        raise
    print(f"{scenario}: tried={tried} lost={lost}", flush=True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
