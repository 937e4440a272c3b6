"""Going on with another number of processes: the optimizer's state, split by ZeRO, split anew.

DeepSpeed's own converter puts the parts together into a universal checkpoint, parameter by parameter, and its
engine takes from that what each process holds now.
"""

import contextlib
import os
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from training.checkpointing.folders import LATEST
from utils.atomic import begin_directory, staging_of
from utils.distributed import decided_by_main, everyone, get_logger

logger = get_logger(__name__)

_UNIVERSAL = "latest_universal"  # DeepSpeed's name for the file that points to one


def load_resharded(engine: Any, folder: Path, output_dir: Path) -> None:
    """Load the DeepSpeed state in `folder`, written by any number of processes, into `engine`; all call.

    ZeRO stage and precision have to be those it was written with. The converted copy, 12 bytes a trained
    parameter, stands in `output_dir` until it is read.
    """
    logger.info("splitting the optimizer's state of %s anew for %d processes", folder, len(everyone(None)))
    place = output_dir / f"{folder.name}-universal"
    decided_by_main(lambda: _convert(folder, place))
    groups = engine.optimizer.param_groups
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    config = engine._config
    try:
        config.load_universal_checkpoint = True
        engine.load_checkpoint(str(staging_of(place)), load_module_strict=False)
    finally:
        config.load_universal_checkpoint = False
    # At ZeRO-3 DeepSpeed gives all groups the first one's settings, where ours differ in weight decay and rate,
    # and one and the same tensor as their count of steps, to which each group's step would add 1.
    for group, setting in zip(groups, settings, strict=True):
        group.update(setting)
    for state in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    everyone(None)  # all have read
    decided_by_main(lambda: shutil.rmtree(staging_of(place)))


def _convert(folder: Path, place: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal  # chooses the device

    tag = (folder / LATEST).read_text().strip()
    staging = begin_directory(place)  # a leftover of a crash is cleared like that of a save
    arguments = Namespace(
        input_folder=str(folder / tag),
        output_folder=str(staging / tag),
        num_extract_workers=1,  # processes of its own would import everything again
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        ds_to_universal.main(arguments)
    (staging / _UNIVERSAL).write_text(tag)
