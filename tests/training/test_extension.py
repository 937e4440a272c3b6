"""A training without what is not its core."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.extension import ALWAYS, ON_REQUEST, Extension
from training.metrics.throughput import ThroughputMeter
from utils.commands import ROOT, UsageError
from utils.plugins import found, wing

WITHOUT = """
import sys
for name in ("training.fault_tolerance.bad_batches", "training.fault_tolerance", "training.metrics", "training.memory",
             "training.data_report", "training.run_report"):
    sys.modules[name] = None  # importing it fails as where it is deleted
import training.run
sys.exit(training.run.main(sys.argv[1:]))
"""


def test_every_extension_is_there() -> None:
    assert issubclass(ThroughputMeter, Extension)
    assert all(issubclass(found(name), Extension) for name in (*ALWAYS, *ON_REQUEST.values()))


def test_a_flag_whose_extension_is_deleted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "training.metrics.answer_check", None)
    with pytest.raises(UsageError, match=r"--eval_generate needs training\.metrics\.answer_check"):
        wing(ON_REQUEST["eval_generate"], "--eval_generate")


@pytest.mark.slow
def test_a_training_needs_no_extension(trainings, tmp_path: Path) -> None:
    flags = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    command = [sys.executable, "-c", WITHOUT, *trainings.arguments(tmp_path, **flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert [line["step"] for line in state["log_history"] if "loss" in line] == [1, 2]
    assert (tmp_path / "final" / "model.safetensors").is_file()
