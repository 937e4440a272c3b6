"""A rank of a training, in a process that is forked from one which has imported this: a start takes seconds less."""

import multiprocessing
import os

import deepspeed  # noqa: F401 - what takes long to import is imported before forking
from transformers.models.clip import modeling_clip  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

import training.run
from tests.ranks import rank_environment
from tests.training.fault_tolerance.disks import DISKS
from utils.commands import end_process


def train(
    number: int, of: int, per_node: int, port: int, flags: list[str], log: str, disk: dict | None
) -> None:
    """Become a rank of a training, which prints into `log`; does not return."""
    os.setpgid(0, 0)
    multiprocessing.set_start_method("fork", force=True)  # as in a training that a user starts
    with open(log, "ab", buffering=0) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.update(rank_environment(number, of, port), LOCAL_WORLD_SIZE=str(per_node))
    if disk and number in disk.pop("ranks", [number]):
        DISKS[disk["kind"]](**disk)
    end_process(training.run.main(flags))
