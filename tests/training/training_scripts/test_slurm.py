"""A job whose time is nearly up, under stand-ins for SLURM's commands: it saves, queues again and goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.checkpointing.folders import resumable_checkpoints

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "training" / "training_scripts" / "slurm.sh"
SRUN = f"""#!{sys.executable}
# Runs the command once for each node. As the real one does, it hands USR1 on to all processes, and kills them for TERM.
import os, signal, subprocess, sys
import psutil

tasks = []

def hand_on(number, frame):
    for task in tasks:
        if task.poll() is None:
            for each in [psutil.Process(task.pid), *psutil.Process(task.pid).children(recursive=True)]:
                each.send_signal(signal.SIGKILL if number == signal.SIGTERM else number)

for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, hand_on)
words = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
for node in range(int(os.environ["SLURM_JOB_NUM_NODES"])):
    tasks.append(subprocess.Popen(words, env={{**os.environ, "SLURM_NODEID": str(node)}}))
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo "$3" | tr , '\\n'; else echo "$*" >> "$OUTPUT_DIR/log"; fi
"""
TRAINING = """
trap 'sleep 0.5; echo "saved by $NODE_RANK" >> "$OUTPUT_DIR/log"; exit 75' USR1
echo "$NODE_RANK of $NNODES, $NUM_GPUS GPUs each, $LAUNCHER at $MASTER_ADDR:$MASTER_PORT, $*" >> "$OUTPUT_DIR/log"
while :; do sleep 0.1; done
"""
DEAF = """
trap '' USR1
echo "$NODE_RANK loads" >> "$OUTPUT_DIR/log"
while :; do sleep 0.1; done
"""


class Job:
    """slurm.sh as SLURM starts it on the first of its nodes."""

    def __init__(self, folder: Path, root: Path, nodes: list[str], *words: str, **values: object) -> None:
        (folder / "bin").mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.log = folder / "log"
        environment = {
            **{"SLURM_SUBMIT_DIR": root, "SLURM_JOB_ID": 1234},
            **{"SLURM_JOB_NUM_NODES": len(nodes), "SLURM_JOB_NODELIST": ",".join(nodes)},
            **{"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OUTPUT_DIR": folder, **values},
        }
        self.process = subprocess.Popen(
            ["bash", SCRIPT, *words],
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def await_lines(self, count: int) -> list[str]:
        end = time.monotonic() + 60
        while not self.log.exists() or len(self.log.read_text().splitlines()) < count:
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.05)
        return self.log.read_text().splitlines()

    def warn(self) -> None:
        """Say that its time is nearly up: `--signal=B:USR1` goes to the script alone."""
        self.process.send_signal(signal.SIGUSR1)

    def end(self, timeout: float = 60) -> tuple[int, str]:
        """Its exit code and what it printed."""
        try:
            printed, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        return self.process.returncode, printed


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository whose scripts train nothing."""
    scripts = tmp_path / "repository" / "training" / "training_scripts"
    scripts.mkdir(parents=True)
    (scripts / "run_70b.sh").write_text(TRAINING)
    (scripts / "deaf.sh").write_text(DEAF)
    (scripts / "fails.sh").write_text("exit 3")
    return tmp_path / "repository"


def test_every_node_saves_before_the_job_queues_again(tmp_path, root):
    job = Job(tmp_path, root, ["gpu07", "gpu08"], "--seed", "5", NUM_GPUS=4)
    same = "of 2, 4 GPUs each, torchrun at gpu07:21234, --resume_from_checkpoint auto --seed 5"
    assert sorted(job.await_lines(2)) == [f"0 {same}", f"1 {same}"]
    job.warn()
    code, printed = job.end()
    assert code == 0, printed
    lines = job.log.read_text().splitlines()[2:]
    assert sorted(lines[:2]) == ["saved by 0", "saved by 1"] and lines[2:] == ["requeue 1234"]


def test_what_does_not_end_is_ended_and_queues_again(tmp_path, root):
    """While it loads its models, say: there is nothing to save yet."""
    job = Job(tmp_path, root, ["gpu07"], RUN="deaf.sh", SAVE_WITHIN=1)
    job.await_lines(1)
    job.warn()
    assert job.end()[0] == 0
    assert job.log.read_text().splitlines() == ["0 loads", "requeue 1234"]


def test_a_training_that_fails_does_not_queue_again(tmp_path, root):
    job = Job(tmp_path, root, ["gpu07"], RUN="fails.sh")
    assert job.end()[0] == 3 and not job.log.exists()


@pytest.mark.slow
def test_a_real_training_saves_and_goes_on(tmp_path, world):
    values = {
        **{"RUN": "run_tiny.sh", "NUM_GPUS": 2, "DATA_PATH": world.data, "DATASETS": "llava llava_dial"},
        **{"LM_MODEL": world.language_model, "VISION_MODEL": world.vision_model, "MAX_SEQ_LEN": 256},
        **{"GLOBAL_BATCH": 4, "BATCH": 2, "EPOCHS": 50, "LANG_LORA_DIM": 0, "LOGGING_STEPS": 1},
        **{"EVAL_STRATEGY": "no", "PRECISION": "fp32", "TENSORBOARD": "false"},
        **{"DS_ACCELERATOR": "cpu", "PYTHON": sys.executable},
    }
    output = tmp_path / "run"
    output.mkdir()
    job = Job(tmp_path, ROOT, ["127.0.0.1"], **values, OUTPUT_DIR=output)
    for line in job.process.stdout:
        if line.startswith("step"):
            break
    job.warn()
    code, printed = job.end(timeout=280)
    assert code == 0 and "stopped after step" in printed, printed[-3000:]
    step = int(printed.rsplit("stopped after step ", 1)[1].split()[0])
    assert resumable_checkpoints(output)[-1].name == f"checkpoint-{step}"
    assert (output / "log").read_text() == "requeue 1234\n"
