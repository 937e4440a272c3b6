"""Tiny models and a tiny dataset as folders on disk, and a way to run training as a user does."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.ranks import ON_CPUS, ROOT, free_port
from tests.tiny import write_clip, write_llama, write_tokenizer
from training.checkpointing.folders import resumable_checkpoints

WORDS = [
    "What colour is it?",
    "It is red.",
    "green blue grey ### Image 1: Question Answer You are a powerful",
]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


@dataclass(frozen=True)
class World:
    """Folders that training takes: decoder, encoder, data."""

    language_model: Path
    vision_model: Path
    data: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    made = World(folder / "llama", folder / "clip", folder / "data")
    made.language_model.mkdir()
    plain = dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
    tokenizer = write_tokenizer(made.language_model, WORDS * 20, vocab_size=330, **plain)
    write_llama(made.language_model, tokenizer, initializer_range=0.02)
    write_clip(made.vision_model)
    _write_data(made.data)
    return made


def _write_data(folder: Path) -> None:
    """30 pictures of one colour each; answers differ in length, and so batches in supervised tokens."""
    images = folder / "coco" / "train2017"
    images.mkdir(parents=True)
    (folder / "llava").mkdir()
    rng = np.random.default_rng(0)
    detail, dialogues = [], []
    for number in range(30):
        colour = list(COLOURS)[number % 4]
        pixels = np.full((16, 16, 3), COLOURS[colour]) + rng.integers(-20, 20, (16, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(images / f"{number:012d}.jpg")
        record = {"id": f"{number:012d}", "image": f"{number:012d}.jpg"}
        question = {"from": "human", "value": "<image>\nWhat colour is it?"}
        answer = {"from": "gpt", "value": "It is " + f"{colour} " * (number % 5 + 1)}
        again = [
            {"from": "human", "value": "Are you a powerful assistant?"},
            {"from": "gpt", "value": colour},
        ]
        detail.append({**record, "conversations": [question, answer]})
        dialogues.append({**record, "conversations": [question, answer, *again]})
    (folder / "llava" / "detail_23k.json").write_text(json.dumps(detail[:16]))
    (folder / "llava" / "complex_reasoning_77k.json").write_text(json.dumps(detail[16:]))
    (folder / "llava" / "conversation_58k.json").write_text(json.dumps(dialogues))


class Trainings:
    """Runs training in processes of its own, as a user does."""

    def __init__(self, world: World) -> None:
        self.world = world

    def arguments(self, output: Path, **flags: object) -> list[str]:
        """A command line with small values; a flag that is None is left out, a list gives several words."""
        values = {
            "lm_model_name_or_path": self.world.language_model,
            "vision_model_name_or_path": self.world.vision_model,
            "data_path": self.world.data,
            "dataset_names": ["llava", "llava_dial"],
            "max_seq_len": 256,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 3,
            "learning_rate": 1e-2,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "dataloader_num_workers": 0,  # for so little they take longer to start than they save
            "precision": "fp32",
            "attention": "mmca",
            "stage3_param_persistence_threshold": 0,
            "output_dir": output,
            **flags,
        }
        words = []
        for name, value in values.items():
            if value is not None:
                words.append(f"--{name}")
                words += [str(each) for each in (value if isinstance(value, list) else [value])]
        return words

    def start(
        self,
        command: list[str],
        processes: int = 1,
        launcher: Sequence[str] = ("-m",),
        module: str = "training.main",
    ) -> subprocess.Popen:
        """Training in processes of its own; its output is one text stream.

        `launcher`: the words between python and `module`, or a program of its own after "-c".
        """
        if processes > 1:
            port = str(20000 + random.randrange(20000))
            launcher = ["-m", "deepspeed.launcher.runner", "--num_gpus", str(processes)]
            launcher += ["--master_port", port, "--module"]
        program = [] if launcher[0] == "-c" else [module]
        return subprocess.Popen(
            [sys.executable, *launcher, *program, *command],
            cwd=ROOT,
            env={**os.environ, **ON_CPUS},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, command: list[str], expected: int = 0, timeout: float = 280, **how: Any) -> str:
        """Run training to its end and return what it printed; its exit code has to be the expected one."""
        process = self.start(command, **how)
        try:
            printed, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == expected, printed[-4000:]
        return printed

    def copy(self, source: Path, target: Path, until: int) -> Path:
        """A run's folder as it was after that step."""
        shutil.copytree(source, target)
        for folder in [*resumable_checkpoints(target), target / "final"]:
            if folder.name == "final" or int(folder.name.split("-")[1]) > until:
                shutil.rmtree(folder)
        return target

    def history(self, output: Path) -> list[dict[str, float]]:
        """The log lines of a run up to its newest checkpoint."""
        newest = resumable_checkpoints(output)[-1]
        return json.loads((newest / "trainer_state.json").read_text())["log_history"]

    def losses(self, output: Path) -> list[float]:
        """The training losses of a run, step by step, up to its newest checkpoint."""
        return [line["loss"] for line in self.history(output) if "loss" in line]


@pytest.fixture(scope="session")
def trainings(world: World) -> Trainings:
    return Trainings(world)


class Forked:
    """The ranks of one training."""

    def __init__(self, ranks: Sequence[multiprocessing.Process], log: Path) -> None:
        self.ranks, self.log = ranks, log
        self.pids = [each.pid for each in ranks]

    @property
    def printed(self) -> str:
        return self.log.read_text()

    def await_line(self, pattern: str, timeout: float = 300) -> None:
        """Wait until a printed line matches, or all have come to their end."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.printed) and any(each.exitcode is None for each in self.ranks):
            assert time.monotonic() < end, f"no {pattern} in {timeout} s:\n{self.printed[-4000:]}"
            time.sleep(0.05)

    def signal(self, number: int, ranks: Sequence[int], children: bool = False) -> None:
        """Send a signal to some ranks; with `children` to what they have started first, as launchers do."""
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(self.pids[rank])
                for each in [*(process.children(recursive=True) if children else []), process]:
                    each.send_signal(number)

    def wait(self, timeout: float = 300) -> list[int]:
        """The exit codes; ranks that still run are killed, and an error."""
        end = time.monotonic() + timeout
        for each in self.ranks:
            each.join(max(end - time.monotonic(), 0))
        codes = [each.exitcode for each in self.ranks]
        for each in self.ranks:
            if each.exitcode is None:
                os.killpg(each.pid, signal.SIGKILL)
                each.join()
        assert None not in codes, f"{codes} after {timeout} s:\n{self.printed[-4000:]}"
        return codes

    def left_behind(self, timeout: float = 15) -> list[str]:
        """What is still alive, after some time, of all that the ranks have started."""
        end = time.monotonic() + timeout
        while (alive := alive_in(self.pids)) and time.monotonic() < end:
            time.sleep(0.1)
        return alive


def alive_in(groups: Sequence[int]) -> list[str]:
    """The living processes of process groups."""
    alive = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(f"{process.pid} {' '.join(process.cmdline())}")
    return alive


class Forks:
    """The process from which trainings are forked."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.started = logs, 0
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.training.fault_tolerance.rank"])
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ON_CPUS.items():
                patch.setenv(name, value)
            ensure_running()

    def start(
        self, flags: Sequence[str], ranks: int = 2, disk: dict | None = None, per_node: int | None = None
    ) -> Forked:
        """Begin a training; its ranks print into one log.

        disk: what befalls that of its `ranks` (`disks.py`). per_node: ranks that think that they share a machine.
        """
        from tests.training.fault_tolerance.rank import train  # takes seconds

        self.started += 1
        log = self.logs / f"{self.started}.log"
        log.touch()
        rest = (ranks, per_node or ranks, free_port(), list(flags), str(log), disk)
        made = [self.context.Process(target=train, args=(number, *rest)) for number in range(ranks)]
        for each in made:
            each.start()
        return Forked(made, log)

    def run(self, flags: Sequence[str], ranks: int = 2, timeout: float = 600, **how: Any) -> str:
        """A training from its beginning to its end; what it printed."""
        forked = self.start(flags, ranks, **how)
        assert forked.wait(timeout) == [0] * ranks, forked.printed[-4000:]
        return forked.printed


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Forks:
    return Forks(tmp_path_factory.mktemp("logs"))
