"""Tiny models and a tiny dataset as folders on disk, and a way to run training as a user does."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.ranks import ON_CPUS, ROOT
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

    def run_plan(self, plan: list[dict], folder: Path, name: str = "plan", **how: Any) -> str:
        """Run a plan of `checkpointing/many_runs.py`; what it printed, which is in the folder's NAME.log too."""
        file = folder / f"{name}.json"
        file.write_text(json.dumps(plan))
        printed = self.run([str(file)], module="tests.training.checkpointing.many_runs", **how)
        file.with_suffix(".log").write_text(printed)
        return printed

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
