"""The demonstration, cut short: every step of `make demo` on a few dialogues, through real DeepSpeed ZeRO-3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoProcessor

import utils.model  # noqa: F401 (registers the processor)
from chat.saved_dialogues import load_dialogue
from helper import demo

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_demo_runs_from_world_to_dialogue(tmp_path: Path) -> None:
    world, output = tmp_path / "world", tmp_path / "output"
    environment = {**os.environ, "MAX_STEPS": "2", "GLOBAL_BATCH": "8", "BATCH": "4", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "helper.demo", "--data", world, "--output", output, "--records", "40"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("Question") >= 4
    assert "overall" in ended.stdout
    assert str(output / "final") in ended.stdout.replace("\n", "")
    assert AutoProcessor.from_pretrained(output / "final").image_seq_length == 5
    assert (output / "evaluation.csv").exists()
    assert len(list((output / "final" / "examples").glob("*.json"))) == 3


def test_examples_are_questions_about_one_image_and_several(tmp_path: Path) -> None:
    demo.write_examples(tmp_path / "examples")
    dialogues = [load_dialogue(file)[0] for file in sorted((tmp_path / "examples").iterdir())]
    assert [len(turn.images) for turns in dialogues for turn in turns] == [1, 2, 3]


@pytest.mark.parametrize("earlier", ["nothing", "a demonstration", "a run of one's own"])
def test_demo_replaces_its_own_run_and_nobody_elses(tmp_path: Path, monkeypatch, earlier: str) -> None:
    commands = []
    monkeypatch.setattr(demo.subprocess, "run", lambda command, **how: commands.append(command))
    monkeypatch.setattr(demo, "hold_dialogue", lambda checkpoint, folder: None)
    monkeypatch.setattr(demo, "write_examples", lambda folder: None)
    if earlier == "a demonstration":
        demo.main(["--output", str(tmp_path)])
    if earlier != "nothing":
        (tmp_path / "final").mkdir()
    assert demo.main(["--output", str(tmp_path)]) == 0
    [training] = [command for command in commands if command[0] == "bash"][-1:]
    assert ("--overwrite_output_dir" in training) == (earlier != "a run of one's own")
