"""Writing what training leaves on the disk, from all processes: checkpoint-N, best and final."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR

from training.checkpointing.folders import (
    LATEST,
    SCHEDULER,
    TRAINER_STATE,
    checkpoint_name,
    next_order,
    point_to,
    resumable_checkpoints,
    rotate,
)
from training.checkpointing.resharding import load_resharded
from training.checkpointing.run_record import Run
from training.run_context import RunContext
from utils.atomic import atomic_write, begin_directory, clear_leftovers, commit_directory, staging_of, sync
from utils.distributed import barrier, everyone, get_logger, is_main_process, rank
from utils.manifest import write_manifest
from utils.model.checkpoint import save_full, save_trained_only
from utils.model.freezing import held_names
from utils.model.loading import HEAD

logger = get_logger(__name__)

_DISK_ERRORS = (OSError, SafetensorError, RuntimeError)  # the last is what torch makes of some of them
_SETTINGS = ("weight_decay", "betas", "eps", "initial_lr")  # of an optimizer's group, as flags give them


class SavingError(RuntimeError):
    """Something could not be written; what was there before is as it was. The message is one line."""


class CheckpointWriter:
    """Writes a training's checkpoints and reads them back into its engine; all processes call alike."""

    def __init__(self, context: RunContext, run: Run) -> None:
        self.context, self.run = context, run
        self._failure: Exception | None = None  # of this process, since all last agreed
        self._failed_saves = 0  # in a row

    @contextmanager
    def tolerating_failed_saves(self) -> Iterator[None]:
        """Training goes on where a save fails: the disk may be freed before the next one. Not for ever."""
        try:
            yield
        except SavingError as error:
            self._failed_saves += 1
            if self._failed_saves > self.context.args.max_failed_saves:
                raise
            if is_main_process():  # all have the same to say
                logger.warning("%s; training goes on, free the disk before the next save", error)
        else:
            self._failed_saves = 0

    def export(self, folder: str | Path, form: str) -> None:
        """Write the model in the form full or trained; `SavingError` in all processes where one cannot."""
        folder = Path(folder)
        weights = self._consolidated(trained_only=form == "trained")
        with self._collecting_errors():
            if is_main_process():
                self._write_model(begin_directory(folder), form, weights)
                write_manifest(staging_of(folder))
                commit_directory(staging_of(folder), folder)
        self._raise_if_any_failed(folder)

    def save(self) -> None:
        """Write checkpoint-N aside, from all processes, and give it its name when all is on the disk.

        Raises `SavingError` in all processes alike where one of them cannot write.
        """
        args, state = self.context.args, self.context.state
        target = Path(args.output_dir, checkpoint_name(state.global_step))
        staging = staging_of(target)
        with self._collecting_errors():
            if is_main_process():
                begin_directory(target)
        self._raise_if_any_failed(target)  # the folder is there
        with self._collecting_errors():
            if not staging.is_dir():
                shared = f"process {rank()} does not see it: all nodes have to share the disk of --output_dir"
                raise FileNotFoundError(errno.ENOENT, shared)
        form = args.epoch_checkpoint_form
        weights = self._consolidated(trained_only=form == "trained")
        if not args.save_only_model:
            self._write_engine(staging)
        if state.best_global_step:
            best = Path(args.output_dir, checkpoint_name(state.best_global_step))
            state.best_model_checkpoint = str(best) if best == target or best.is_dir() else None
        with self._collecting_errors():
            if is_main_process():
                self._write_model(staging, form, weights)
                torch.save(self.context.schedule.state_dict(), staging / SCHEDULER)
                self.run.save(staging)
                state.save_to_json(str(staging / TRAINER_STATE))
        self._raise_if_any_failed(target)  # everyone has written
        with self._collecting_errors():
            if is_main_process():
                write_manifest(staging, next_order(target.parent))
                commit_directory(staging, target)
        self._raise_if_any_failed(target)
        if is_main_process():
            self._tidy(target)

    def restore(self, folder: str | Path) -> None:
        """Put engine and schedule back to where they were, under the rates and decay that this run's flags give."""
        folder = Path(folder)
        written = self.run.load(folder)
        schedule = self.context.schedule
        schedule = getattr(schedule, "scheduler", schedule)  # accelerate wraps that of an own configuration
        settings = [
            {name: group[name] for name in _SETTINGS if name in group}
            for group in schedule.optimizer.param_groups
        ]
        if written.processes != self.run.processes and self.run.zero_stage > 0:
            load_resharded(self.context.engine, folder, Path(self.context.args.output_dir))
        else:  # without ZeRO every process holds the whole state
            self.load_engine(folder)
        for group, setting in zip(schedule.optimizer.param_groups, settings, strict=True):
            group.update(setting)  # those of the checkpoint are there now
        _restore_schedule(schedule, torch.load(folder / SCHEDULER, weights_only=True))

    def load_engine(self, folder: str | Path) -> None:
        """Read DeepSpeed's state: trained weights and the optimizer."""
        self.context.engine.load_checkpoint(str(folder), load_module_strict=False)

    def _write_engine(self, staging: Path) -> None:
        """DeepSpeed's state and the random states, from all processes."""
        from training.checkpointing.durable_engine import DurableCheckpointEngine  # chooses the device

        engine = self.context.engine
        writer = engine.checkpoint_engine = DurableCheckpointEngine(engine._config)
        tag = f"global_step{self.context.state.global_step}"
        engine.save_checkpoint(str(staging), tag=tag, save_latest=False, exclude_frozen_parameters=True)
        self._failure = self._failure or writer.failure
        with self._collecting_errors():
            self.context.save_random_state(str(staging))
            alone = self.run.processes == 1
            sync(staging / ("rng_state.pth" if alone else f"rng_state_{rank()}.pth"))
            if is_main_process():
                atomic_write(staging / LATEST, tag)

    def _tidy(self, target: Path) -> None:
        """Point to the new checkpoint and remove old ones: it is complete whether this succeeds or not."""
        try:
            point_to(target)
            clear_leftovers(target.parent)  # of saves that failed on a disk that could not even remove them
            kept = [self.context.state.best_model_checkpoint]
            rotate(target.parent, self.context.args.save_total_limit, kept)
        except OSError as error:
            logger.warning("%s is written, but tidying up %s failed: %s", target.name, target.parent, error)

    @contextmanager
    def _collecting_errors(self) -> Iterator[None]:
        """An error of the disk is kept until all processes meet, so that none waits for one that has left."""
        try:
            yield
        except _DISK_ERRORS as error:
            self._failure = self._failure or error

    def _raise_if_any_failed(self, target: Path) -> None:
        """Wait for everyone; where anyone has failed, remove what was written and raise in all."""
        failure, self._failure = self._failure, None
        found = [each for each in everyone(failure and _one_line(failure)) if each]
        if not found:
            return
        if is_main_process():
            shutil.rmtree(staging_of(target), ignore_errors=True)
        barrier()  # nobody goes on before it is gone
        earlier = [folder.name for folder in resumable_checkpoints(target.parent)]
        kept = f"{earlier[-1]} is the newest complete checkpoint" if earlier else "there is no checkpoint yet"
        raise SavingError(f"{target} could not be written ({found[0]}; {_free(target.parent)}); {kept}")

    def _write_model(self, folder: Path, form: str, weights: dict[str, torch.Tensor]) -> None:
        save = save_trained_only if form == "trained" else save_full
        save(self.context.model, self.context.processor, folder, state_dict=weights)

    def _consolidated(self, trained_only: bool) -> dict[str, torch.Tensor]:
        """Weights as tensors of their own, whole, on the CPU of the main process; elsewhere none.

        With `trained_only`, those that a checkpoint in this form holds. Under ZeRO-1 and 2 weights are views of one
        large buffer, which safetensors refuses, so those are copied too.
        """
        import deepspeed  # at the top it would choose the device before the arguments are read

        model = self.context.model
        held = held_names(model) | {HEAD}  # the head has rows of added tokens
        weights = {}
        for name, parameter in model.named_parameters():
            if trained_only and name not in held:
                continue
            with deepspeed.zero.GatheredParameters([parameter]):  # does nothing unless ZeRO-3 has split it
                if is_main_process():
                    weights[name] = parameter.detach().to("cpu", copy=True)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        buffers = {name: value for name, value in model.state_dict().items() if name not in parameters}
        return weights | buffers if is_main_process() else {}


def _restore_schedule(schedule: Any, state: dict[str, Any]) -> None:
    """Go to the step that `state` was saved at, on the curve that this run's flags give."""
    peaks = getattr(schedule, "base_lrs", None)
    schedule.load_state_dict(state)
    if isinstance(schedule, LambdaLR):
        schedule.base_lrs = peaks
        rates = [
            peak * factor(schedule.last_epoch)
            for peak, factor in zip(peaks, schedule.lr_lambdas, strict=True)
        ]
        schedule._last_lr = rates
    else:
        rates = state.get("_last_lr") or schedule.get_lr()  # DeepSpeed's schedules leave it to be computed
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _one_line(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:,.1f} GB are free there"
    except OSError as error:
        return f"how much is free there is not known: {error.strerror}"
