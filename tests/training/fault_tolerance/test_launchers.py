"""Runs under the real launchers: signals on their way through them, two nodes, nothing left behind."""

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from tests.ranks import ON_CPUS, ROOT
from tests.training.conftest import alive_in
from training.checkpointing.folders import resumable_checkpoints

pytestmark = pytest.mark.slow


def wait_until_gone(group: int, timeout: float = 60) -> None:
    """Until a process group is empty; what is left in it is killed, and an error."""
    end = time.monotonic() + timeout
    while left := alive_in([group]):
        if time.monotonic() > end:
            os.killpg(group, signal.SIGKILL)
            raise AssertionError(f"left behind: {left}")
        time.sleep(0.1)


@pytest.mark.parametrize("target", ["runner", "launcher", "killed"])
def test_a_signal_to_the_launcher_alone(trainings, tmp_path, target):
    """To DeepSpeed's runner, which hands no signal on; to its launcher, which signals one rank after the other;
    and kill -9 of the launcher: in each case the ranks save and end."""
    command = trainings.arguments(
        tmp_path, per_device_train_batch_size=1, zero_stage=3, num_train_epochs=50, eval_strategy="no"
    )
    process = trainings.start([*command, "--dataloader_num_workers", "1"], processes=2)
    for line in process.stdout:
        if line.startswith("step"):
            break
    if target == "runner":
        process.terminate()
    else:
        [launcher] = psutil.Process(process.pid).children()
        launcher.send_signal(signal.SIGTERM if target == "launcher" else signal.SIGKILL)
    printed = process.stdout.read()  # to its end: until the last process has closed it
    process.wait(timeout=60)
    wait_until_gone(process.pid)
    assert "stopped after step" in printed, printed[-3000:]
    step = printed.rsplit("stopped after step ", 1)[1].split()[0]
    assert resumable_checkpoints(tmp_path)[-1].name == f"checkpoint-{step}"


def node(number: int, port: int, command: list[str]) -> subprocess.Popen:
    """A launcher as DeepSpeed's runner starts one on each of two machines; here both are this one."""
    world = base64.urlsafe_b64encode(json.dumps({"127.0.0.1": [0], "127.0.0.2": [0]}).encode()).decode()
    launch = ["-m", "deepspeed.launcher.launch", f"--world_info={world}", f"--node_rank={number}"]
    launch += ["--master_addr=127.0.0.1", f"--master_port={port}", "--module", "training.main"]
    return subprocess.Popen(
        [sys.executable, *launch, *command],
        cwd=ROOT,
        env={**os.environ, **ON_CPUS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_two_nodes_learn_what_one_learns(trainings, forks, tmp_path):
    """And when a process of one node is killed, both nodes end."""
    flags = {"per_device_train_batch_size": 2, "zero_stage": 3, "max_steps": 6, "eval_strategy": "no"}
    forks.run(trainings.arguments(tmp_path / "one", **flags))
    port = 20000 + random.randrange(20000)
    command = trainings.arguments(tmp_path / "two", **flags)
    nodes = [node(number, port, command) for number in range(2)]
    printed = [each.communicate(timeout=280)[0] for each in nodes]
    assert [each.returncode for each in nodes] == [0, 0], printed[0][-3000:] + printed[1][-3000:]
    one, two = (trainings.losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 6
    lost = np.abs(np.subtract(one, two)) > 1e-6
    print(f"steps on two nodes: tried={len(two)} lost={lost.sum()}")
    assert not lost.any()

    command = trainings.arguments(tmp_path / "three", **(flags | {"max_steps": 1000, "save_steps": 1}))
    nodes = [node(number, port + 1, [*command, "--save_strategy", "steps"]) for number in range(2)]
    for line in nodes[0].stdout:
        if line.startswith("step"):
            break
    [rank] = psutil.Process(nodes[1].pid).children()
    rank.kill()
    printed = nodes[0].communicate(timeout=60)[0]
    nodes[1].communicate(timeout=60)
    assert "error: rank 1 (" in printed and "is gone" in printed, printed[-3000:]
    for each in nodes:
        assert each.returncode != 0
        wait_until_gone(each.pid)
