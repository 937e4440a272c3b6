"""Shows what a training would do, without running it: memory plan, datasets, downloads, disk space, steps, a verdict.

`DRY_RUN=1 visualchat train small` and `DRY_RUN=1 bash training/training_scripts/run_7b.sh` run it with the flags of
recipe or script. On its own: `python -m helper.dry_run` with the flags of training and of helper.plan_memory.

Exit codes: 0 if the training could start, 1 if it would not fit or data is missing, 2 for a wrong flag.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from helper.plan_memory import add_flags, bandwidths_of, gpu_memory
from training.arguments.command_line import parse_flags
from utils.commands import GIB, command, end_process

if TYPE_CHECKING:
    from utils.data.spec import DatasetSpec, Part

_COLUMNS = ("dataset", "samples", "joined up to", "weight", "annotations", "images")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print plan and datasets of a command line; returns the exit code."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed's settings are read; no device is used
    flags = parse_flags(argv, "python -m helper.dry_run", __doc__, add_flags)[1]
    from helper import needs
    from training.memory.from_flags import training_of
    from training.memory.plan import Planner
    from training.memory.report import print_report, size
    from utils.data.registry import find_specs

    planner, memory = Planner(), gpu_memory(flags.gpu_memory)
    training = training_of(flags, flags.gpus, flags.supervised_share, flags.gpus_per_node)
    specs = find_specs(flags.dataset_names, flags.image_folder)
    table = dataset_table(specs, flags)
    models = needs.models_of(flags)
    missing = [(spec.name, part) for spec in specs for part in spec.missing(Path(flags.data_path))]
    print_report(training, memory, flags.host_memory * GIB, planner, bandwidths_of(flags))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for name, part in missing:
        console.print(f"missing for {name}: {part.wanted(Path(flags.data_path))}")
    plan = planner.plan(training)
    steps = needs.steps_of(flags, flags.gpus, models, has_data=not missing)
    written = needs.checkpoints_of(flags, plan.weights, training.dtype, steps)
    downloads = sum(model.to_download for model in models)
    checkpoints = sum(count * each for count, each in written.values())
    disks = needs.disks_of(Path(flags.output_dir), checkpoints, downloads)
    for line in needs.lines(models, disks, steps):
        console.print(line)
    tensors = f"{size(plan.peak)} GiB of tensors on each GPU of {size(memory)}"
    sizes = (
        f"{tensors}, {needs.gigabytes(downloads)} to download, {needs.gigabytes(checkpoints)} of checkpoints"
    )
    short = list(needs.short_of(disks))
    if not plan.fits(memory):
        short.insert(0, tensors)
    lacking = [f"weights in {model.name}" for model in models if model.is_lacking]
    if missing:
        lacking.append(f"data of {', '.join(dict.fromkeys(name for name, _ in missing))}")
    console.print(_verdict(sizes, short, lacking), style="bold")
    return 1 if short or lacking else 0


def _verdict(sizes: str, short: Sequence[str], lacking: Sequence[str]) -> str:
    """The last line: whether the training fits this machine, and what it could not start without."""
    verdict = f"verdict: does not fit: {'; '.join(short)}" if short else f"verdict: fits: {sizes}"
    return f"{verdict}; missing: {'; '.join(lacking)}" if lacking else verdict


def dataset_table(specs: Sequence["DatasetSpec"], flags: argparse.Namespace) -> Table:
    """A row for each dataset: how much of it, joined how, and whether its files are there and how large.

    Raises `UsageError` where there are neither one value of a kind nor one for each dataset.
    """
    from utils.data.spec import one_for_each

    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")  # a path that is cut would say little
    names = [spec.name for spec in specs]
    per_dataset = [
        one_for_each(getattr(flags, name), names, f"--{name}")
        for name in ("dataset_samples", "dataset_concatenate_samples", "dataset_weights")
    ]
    for spec, samples, joined, weight in zip(specs, *per_dataset, strict=True):
        files = [
            ", ".join(_found(Path(flags.data_path), part) for part in parts) or "-"
            for parts in (spec.annotations, spec.images)
        ]
        table.add_row(spec.name, str(samples), str(joined), f"{weight:g}", *files)
    return table


def _found(data_path: Path, part: "Part") -> str:
    place = part.locate(data_path)
    if place is None:
        return f"{'beside ' if part.is_beside else ''}{part.path} (missing)"
    shown = place.relative_to(data_path) if place.is_relative_to(data_path) else place
    return f"{shown}/" if place.is_dir() else f"{shown} ({place.stat().st_size / 1e6:,.1f} MB)"


if __name__ == "__main__":
    end_process(main())
