"""A memory plan made in a process of its own, from within a training.

There a process group and ZeRO-3 are at work, which a model that is built on shapes would take part in.
"""

import os
import pickle
import subprocess
import sys

from training.memory.plan import MemoryPlan, Planner, Training
from utils.commands import ROOT

_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def predict_in_subprocess(training: Training) -> MemoryPlan:
    """`Planner().plan(training)`; neither a GPU nor this process's state is touched."""
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHERS}
    done = subprocess.run(
        [sys.executable, "-m", "training.memory.predict"],
        input=pickle.dumps(training),
        capture_output=True,
        cwd=ROOT,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
    )
    if done.returncode:
        raise RuntimeError(f"the memory plan failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return pickle.loads(done.stdout)


def _main() -> None:
    training = pickle.load(sys.stdin.buffer)
    plan = Planner().plan(training)
    sys.stdout.buffer.write(pickle.dumps(plan))


if __name__ == "__main__":
    _main()
