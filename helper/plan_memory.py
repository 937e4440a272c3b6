"""Shows whether a training fits into memory: `python -m helper.plan_memory` with the flags of training.

    python -m helper.plan_memory --lm_model_name_or_path llama-2-7b --gpus 8 --gpu_memory 80 --zero_stage 3 \\
        --enable_mmca_attention --gradient_checkpointing true --max_seq_len 4096

Runs the model on shapes alone (PyTorch's meta device): no weights, no downloads, no data, no GPU; no network for the
usual models, whose names are built in, nor for a folder with a config.json. Prints the peak memory of each GPU by what
it holds, the largest batch that fits, and the cheapest setting that fits; for several GPUs also what a step sends under
each `--shard_within`. Flags that do not concern memory are accepted and have no effect.

Exit codes: 0 if the training fits, 1 if it does not, 2 for a wrong flag.
"""

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence

from training.arguments.command_line import parse_flags
from utils.commands import GIB, UsageError, command, end_process


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Plan the training that a command line names; returns the exit code."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed's settings are read; no device is used
    flags = parse_flags(argv, "python -m helper.plan_memory", __doc__, add_flags)[1]
    from training.memory.from_flags import training_of
    from training.memory.plan import Planner
    from training.memory.report import print_report

    training = training_of(flags, flags.gpus, flags.supervised_share, flags.gpus_per_node)
    planner = Planner()
    memory = gpu_memory(flags.gpu_memory)
    print_report(training, memory, flags.host_memory * GIB, planner, bandwidths_of(flags))
    return 0 if planner.plan(training).fits(memory) else 1


def add_flags(parser: ArgumentParser) -> None:
    """The plan's own flags beside those of training."""
    group = parser.add_argument_group("memory plan")
    group.add_argument("--gpus", type=_count, default=1, help="GPUs of the whole training (default: 1).")
    group.add_argument(
        "--gpus_per_node", type=_count, default=8, help="GPUs of a node (default: 8, or all if fewer)."
    )
    group.add_argument(
        "--bandwidths",
        type=float,
        nargs=2,
        default=[50.0, 300.0],
        metavar=("NETWORK", "NODE"),
        help="GB/s into a node from the others, all its adapters together, and into a GPU from the others of its node"
        " (default: 50 300, one adapter of 400 Gb/s a node and an A100's NVLink; eight such adapters have 400, PCIe 4.0"
        " about 25).",
    )
    group.add_argument(
        "--gpu_memory",
        type=float,
        help="Memory of one GPU in GiB (default: that of the GPU in this machine, or 80).",
    )
    group.add_argument(
        "--host_memory",
        type=float,
        default=float("inf"),
        help="Main memory for each GPU in GiB (default: no limit).",
    )
    group.add_argument(
        "--supervised_share",
        type=_share,
        default=1.0,
        help="Share of a row's text tokens that are supervised; 1 (default) is the worst case.",
    )


def bandwidths_of(flags: Namespace) -> tuple[float, float]:
    """Bytes a second into a node, and into a GPU; raises `UsageError` for a number that is not positive."""
    network, inside = flags.bandwidths
    if not (network > 0 and inside > 0):
        raise UsageError(f"--bandwidths {network:g} {inside:g}: give two positive numbers, in GB/s")
    return network * 1e9, inside * 1e9


def _count(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise ArgumentTypeError(f"{word} is no positive number")
    return int(word)


def _share(word: str) -> float:
    share = float(word)
    if not 0 < share <= 1:
        raise ArgumentTypeError(f"{word} is no share: give more than 0, up to 1")
    return share


def gpu_memory(given: float | None) -> float:
    """Bytes of a GPU: as given in GiB, or of the one here, or 80 GiB."""
    import torch

    if given is not None:
        return given * GIB
    return (
        float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 80.0 * GIB
    )


if __name__ == "__main__":
    end_process(main())
