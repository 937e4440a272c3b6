"""Recipes: training's flags in a YAML file, started by `visualchat train RECIPE key=value`.

Keys are flags without their dashes, values what follows them: a word, a number, or a list. Five keys are not flags:

- `base`: another recipe, beside this one, whose values this one changes;
- `global_batch`: conversations (with packing, rows) per optimizer step over all processes; sets
  `gradient_accumulation_steps`;
- `processes` (default 1) and `launcher` (deepspeed or torchrun): how many processes to start on this machine;
- `gpu_memory`: GiB of the GPU that the recipe is made for, which plan and dry run go by.

Every training writes all its flags as such a file into its output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from training.arguments import DataArguments, ModelArguments, RunArguments
from utils.atomic import atomic_write
from utils.commands import ROOT, UsageError
from utils.distributed import cores, world_size
from utils.plugins import lasting_name

RECIPES = ROOT / "recipes"
WRITTEN = "recipe.yaml"

FLAGS = [each.name for kind in (ModelArguments, DataArguments, RunArguments) for each in fields(kind)]
OWN_KEYS = ("global_batch", "processes", "launcher", "gpu_memory")
LAUNCHERS = ("deepspeed", "torchrun")
STARTS_ONLY = {"overwrite_output_dir", "resume_from_checkpoint", "dry_run_worst_batch", "local_rank"}
"""Flags of one start of a run, which a recipe that repeats the run leaves out."""
PATHS = {
    *("lm_model_name_or_path", "vision_model_name_or_path", "init_from"),
    *("data_path", "data_cache_path", "data_debug_path", "image_folder", "dataset_names"),
    *("output_dir", "nvme_path", "deepspeed_config"),
}
"""Flags that may name files; they are written as absolute paths, so that a recipe works from any folder."""

Value = str | list[str]


@dataclass(frozen=True)
class Processes:
    """How many processes train together, what starts them, and GiB of the GPU of each."""

    count: int = 1
    launcher: str = "deepspeed"
    gpu_memory: str | None = None

    @property
    def plan_flags(self) -> list[str]:
        """What the memory plan is told of them."""
        memory = ["--gpu_memory", self.gpu_memory] if self.gpu_memory else []
        return ["--gpus", str(self.count), *memory]


def flags_of(words: Sequence[str]) -> tuple[list[str], Processes]:
    """The flags that a recipe, changes to it (`key=value`) and flags after them ask for, and the processes.

    Raises `UsageError` for a recipe that is not there or cannot be read, and for an unknown key.
    """
    name, *rest = words
    flags_begin = next((at for at, word in enumerate(rest) if word.startswith("-")), len(rest))
    recipe = read(name) | _changes(rest[:flags_begin])
    recipe = {key: value for key, value in recipe.items() if value not in ("", "null")}
    flags = rest[flags_begin:]
    _refuse_unknown(recipe, name)
    processes = Processes(
        count=_positive(recipe.pop("processes", "1"), "processes"),
        launcher=recipe.pop("launcher", "deepspeed"),
        gpu_memory=recipe.pop("gpu_memory", None),
    )
    if processes.launcher not in LAUNCHERS:
        raise UsageError(f"launcher {processes.launcher}: choose {' or '.join(LAUNCHERS)}")
    if "global_batch" in recipe:
        recipe["gradient_accumulation_steps"] = str(_accumulation(recipe, processes, flags))
    return [word for key, value in recipe.items() for word in (f"--{key}", *_words(value))] + flags, processes


def read(name: str) -> dict[str, Any]:
    """The values of a recipe over those of its base; a name without an ending is one of the folder `recipes`."""
    path = Path(name)
    if not path.is_file() and (RECIPES / f"{name}.yaml").is_file():
        path = RECIPES / f"{name}.yaml"
    try:
        # All scalars as text, as on a command line: `no` stays a word, 1e-3 a number for the flag to read.
        recipe = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except FileNotFoundError:
        known = ", ".join(sorted(each.stem for each in RECIPES.glob("*.yaml")))
        raise UsageError(
            f"there is no recipe {name}: give a YAML file, or one of {known}; flags begin with --"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"{path} is no recipe: its lines are 'flag: value'")
    base = recipe.pop("base", None)
    return (read(str(path.parent / base)) if base else {}) | recipe


def _changes(words: Sequence[str]) -> dict[str, Any]:
    changes = {}
    for word in words:
        key, is_change, value = word.partition("=")
        if not is_change:
            raise UsageError(f"{word}: after a recipe come changes (key=value), then flags (--key value)")
        try:
            changes[key] = yaml.load(value, Loader=yaml.BaseLoader) if value else ""
        except yaml.YAMLError:
            changes[key] = value
    return changes


def _refuse_unknown(recipe: Mapping[str, Any], name: str) -> None:
    if not recipe.keys() - {*FLAGS, *OWN_KEYS}:
        return
    # Takes seconds, which a recipe of the project's own flags need not wait for.
    from training.arguments.parser import Parser

    known = {*FLAGS, *OWN_KEYS, *(action.dest for action in Parser()._actions)}
    for key in recipe:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "visualchat train --help lists all flags"
            raise UsageError(f"recipe {name}: unknown key {key}: {hint}")


def _accumulation(recipe: dict[str, Any], processes: Processes, flags: Sequence[str]) -> int:
    """Micro-batches of an optimizer step, from `global_batch`, which is taken out of the recipe."""
    wanted = _positive(recipe.pop("global_batch"), "global_batch")
    for key in ("gradient_accumulation_steps", "per_device_train_batch_size"):
        if f"--{key}" in flags or (key in recipe and key.startswith("gradient")):
            raise UsageError(
                f"global_batch sets the accumulation: leave out --{key}, or give {key}=N global_batch="
            )
    default = RunArguments.per_device_train_batch_size
    batch = _positive(recipe.get("per_device_train_batch_size", str(default)), "per_device_train_batch_size")
    count = int(os.environ.get("WORLD_SIZE", processes.count))
    if wanted % (count * batch):
        raise UsageError(
            f"global_batch {wanted} is no multiple of processes x per_device_train_batch_size = {count} x {batch}:"
            " change one"
        )
    return wanted // (count * batch)


def _positive(value: Any, key: str) -> int:
    if not (isinstance(value, str) and value.isdigit() and int(value) > 0):
        raise UsageError(f"{key} {value}: give a positive whole number")
    return int(value)


def _words(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def start_processes(processes: Processes, flags: Sequence[str]) -> None:
    """Become the launcher of several processes; returns where one is enough, or a launcher has started this one."""
    if processes.count == 1 or "WORLD_SIZE" in os.environ:
        return
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes.count)))
    # Modules are the project's, whatever lies in the caller's folder.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(PYTHONPATH=os.pathsep.join(paths), PYTHONSAFEPATH="1")
    port = os.environ.get("MASTER_PORT", str(random.SystemRandom().randrange(20000, 32000)))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # launchers would die of what only asks training to save
    if processes.launcher == "deepspeed":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it would end at once, while training still saves
        launcher = ["deepspeed.launcher.runner", "--quiet", "--num_gpus", str(processes.count)]
        launcher += ["--master_port", port, "--module"]
    else:
        launcher = ["torch.distributed.run", "--nproc_per_node", str(processes.count), "--max_restarts", "0"]
        launcher += ["--master_port", port, "-m"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", *launcher, "training.main", *flags])


def write(recipe: Mapping[str, Any], folder: Path) -> None:
    """Write the recipe of a training (`resolved`) into its output folder."""
    head = f"# Every flag of this training. Again: visualchat train {folder / WRITTEN} output_dir=ANOTHER\n"
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    atomic_write(folder / WRITTEN, head + text)


def resolved(flags: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The recipe that starts the same training: all flags of the project that are set, and those of transformers
    that differ from its defaults.
    """
    others = [name for name, value in vars(flags).items() if value != parser.get_default(name)]
    values = {}
    for name in dict.fromkeys([*FLAGS, *others]):
        value = getattr(flags, name)
        if name not in STARTS_ONLY and value is not None and value != []:
            values[name] = _absolute(value) if name in PATHS else value
    if "plugin" in values:
        values["plugin"] = [lasting_name(each) for each in flags.plugin]
    micro = values.pop("gradient_accumulation_steps", flags.gradient_accumulation_steps)
    count = world_size()
    values["global_batch"] = flags.per_device_train_batch_size * micro * count
    values["processes"] = count
    return values


def _absolute(value: Any) -> Any:
    """Names of files and folders that are there, from the root of the disk; other names as they are."""
    if isinstance(value, list):  # a published dataset keeps its name, also where a folder is called so
        return [_absolute(each) if "/" in each or "." in each else each for each in value]
    return str(Path(value).absolute()) if Path(value).exists() else value
