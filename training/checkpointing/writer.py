"""Writing what training leaves on the disk, from all processes: checkpoint-N, best and final."""

import copy
import errno
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
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
    write_manifest,
)
from training.checkpointing.run_record import Run
from training.checkpointing.snapshot import Copies
from training.extension import RunContext
from utils.atomic import atomic_write, begin_directory, clear_leftovers, commit_directory, staging_of, sync
from utils.distributed import everyone, get_logger, is_main_process, rank, separate_group
from utils.model.checkpoint import full_form, new_head_rows, trained_form, write_form
from utils.model.loading import HEAD, NEW_HEAD_ROWS, NEW_PARTS
from utils.model.lora import held_names

logger = get_logger(__name__)

_DISK_ERRORS = (OSError, SafetensorError, RuntimeError)  # the last is what torch makes of some of them
_FORMS = {"full": full_form, "trained": trained_form}
_SETTINGS = ("weight_decay", "betas", "eps", "initial_lr")  # of an optimizer's group, as flags give them


class SavingError(RuntimeError):
    """Something could not be written; what was there before is as it was. The message is one line."""


class CheckpointWriter:
    """Writes a training's checkpoints and reads them back into its engine; all processes call alike."""

    def __init__(self, context: RunContext, run: Run) -> None:
        self.context, self.run = context, run
        self.saved_step = 0
        """Of the newest checkpoint-N, or that this start began with; `finish` brings it up to date."""
        self._failure: Exception | None = None  # of this process, since all last agreed
        self._failed_saves = 0  # in a row
        self._in_flight: Future[None] | None = None
        self._group: Any = None  # in which the threads that write meet
        self._processor: Any = None  # theirs: the trainer's is in use meanwhile
        self._copies = Copies()  # that they write

    @contextmanager
    def tolerating_failed_saves(self) -> Iterator[None]:
        """Training goes on where a save fails: the disk may be freed before the next one. Not for ever."""
        try:
            yield
        except SavingError as error:
            self._tolerate(error)
        else:
            self._failed_saves = 0

    def export(self, folder: str | Path, form: str) -> None:
        """Write the model in the form full or trained; `SavingError` in all processes where one cannot."""
        self.finish()
        folder = Path(folder)
        weights = self._consolidated(form == "trained", _copy)
        with self._collecting_errors():
            if is_main_process():
                model, processor = self.context.model, self.context.processor
                write_form(model, processor, begin_directory(folder), *_FORMS[form](model, weights))
                write_manifest(staging_of(folder))
                commit_directory(staging_of(folder), folder)
        self._raise_if_any_failed(folder)

    def save(self, in_background: bool = False) -> None:
        """Write checkpoint-N aside, from all processes, and give it its name when all is on the disk.

        in_background: all is copied to main memory now, and a thread of each process writes it while training goes on;
        `finish` waits for that, and the next save and export do. A save whose failure would end the training is waited
        for in any case.

        Raises `SavingError` in all processes alike where one of them cannot write, and `max_failed_saves` in a row
        could not before; failures up to then are logged.
        """
        self.finish()
        if not in_background or self._failed_saves >= self.context.args.max_failed_saves:
            with self.tolerating_failed_saves():
                self._begin(copied=False)(None)
            return
        self._group = self._group or separate_group()
        try:
            complete = self._begin(copied=True)
        except SavingError as error:
            self._tolerate(error)
        else:
            # The process does not end before its thread (`utils.commands.end_process`).
            writing = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            self._in_flight = writing.submit(self._complete_in_background, complete)
            writing.shutdown(wait=False)

    @property
    def is_writing(self) -> bool:
        """Whether there is something to `finish`."""
        return self._in_flight is not None

    def finish(self) -> None:
        """Wait for the checkpoint that is being written in the background, if one is; all processes call."""
        writing, self._in_flight = self._in_flight, None
        if writing is not None:
            writing.result()

    def _begin(self, copied: bool) -> Callable[[Any], None]:
        """Make the folder, and collect what belongs into it; returns what writes it (`_complete`).

        copied: what is collected is not touched by later steps.
        """
        args, state = self.context.args, self.context.state
        target = Path(args.output_dir, checkpoint_name(state.global_step))
        staging = staging_of(target)
        with self._collecting_errors():
            if is_main_process():
                clear_leftovers(target.parent)  # of saves that failed, and could not even be removed
                begin_directory(target)
        self._raise_if_any_failed(target)  # the folder is there
        with self._collecting_errors():
            if not staging.is_dir():
                shared = f"process {rank()} does not see it: all nodes have to share the disk of --output_dir"
                raise FileNotFoundError(errno.ENOENT, shared)
        form = args.epoch_checkpoint_form
        if copied:
            self._copies.begin()
        weights = self._consolidated(form == "trained", self._copies.tensor if copied else _copy)
        keep = self._copies.snapshot if copied else _as_it_is
        writes = [] if args.save_only_model else self._engine_writes(staging, keep)
        if state.best_global_step:
            best = Path(args.output_dir, checkpoint_name(state.best_global_step))
            state.best_model_checkpoint = str(best) if best == target or best.is_dir() else None
        if is_main_process():
            if copied and self._processor is None:
                self._processor = copy.deepcopy(self.context.processor)
            processor = self._processor if copied else self.context.processor
            model = self.context.model
            schedule, trainer_state = keep(self.context.schedule.state_dict()), keep(state)
            writes += [
                partial(write_form, model, processor, staging, *_FORMS[form](model, weights)),
                lambda: torch.save(schedule(), staging / SCHEDULER),
                partial(self.run.save, staging),
                lambda: trainer_state().save_to_json(str(staging / TRAINER_STATE)),
            ]
        return partial(self._complete, target, state.global_step, state.best_model_checkpoint, writes)

    def _complete(
        self, target: Path, step: int, best: str | None, writes: list[Callable[[], None]], group: Any
    ) -> None:
        """Bring a checkpoint to the disk and give it its name; processes meet in `group`.

        Raises `SavingError` in all of them where one could not write.
        """
        staging = staging_of(target)
        with self._collecting_errors():
            while writes:
                writes.pop(0)()  # what it holds is let go
        self._raise_if_any_failed(target, group)  # everyone has written
        with self._collecting_errors():
            if is_main_process():
                write_manifest(staging, next_order(target.parent))
                commit_directory(staging, target)
        self._raise_if_any_failed(target, group)
        self.saved_step = step
        if is_main_process():
            self._tidy(target, best)

    def _complete_in_background(self, complete: Callable[[Any], None]) -> None:
        with self.tolerating_failed_saves():
            complete(self._group)

    def restore(self, folder: str | Path) -> None:
        """Put engine and schedule back to where they were, under the rates and decay that this run's flags give."""
        folder, self.saved_step = Path(folder), self.context.state.global_step
        written = self.run.load(folder)
        schedule = self.context.schedule
        schedule = getattr(schedule, "scheduler", schedule)  # accelerate wraps that of an own configuration
        settings = [
            {name: group[name] for name in _SETTINGS if name in group}
            for group in schedule.optimizer.param_groups
        ]
        if written.processes != self.run.processes and self.run.zero_stage > 0:
            from training.checkpointing.deepspeed_state import load_resharded  # chooses the device

            load_resharded(self.context.engine, folder, Path(self.context.args.output_dir))
        else:  # without ZeRO every process holds the whole state
            self.load_engine(folder)
        for group, setting in zip(schedule.optimizer.param_groups, settings, strict=True):
            group.update(setting)  # those of the checkpoint are there now
        _restore_schedule(schedule, torch.load(folder / SCHEDULER, weights_only=True))

    def load_engine(self, folder: str | Path) -> None:
        """Read DeepSpeed's state: trained weights and the optimizer."""
        self.context.engine.load_checkpoint(str(folder), load_module_strict=False)

    def _engine_writes(
        self, staging: Path, keep: Callable[[Any], Callable[[], Any]]
    ) -> list[Callable[[], None]]:
        """What brings DeepSpeed's state and the random states to the disk, from all processes."""
        from training.checkpointing.deepspeed_state import DurableCheckpointEngine  # chooses the device

        engine = self.context.engine
        tag = f"global_step{self.context.state.global_step}"
        files = DurableCheckpointEngine(engine._config, keep)
        with files.of(engine):
            engine.save_checkpoint(str(staging), tag=tag, save_latest=False, exclude_frozen_parameters=True)
        with self._collecting_errors():
            self.context.save_random_state(str(staging))
        alone = self.run.processes == 1
        writes, files.writes = files.writes, []  # DeepSpeed holds on to `files`
        writes.append(partial(sync, staging / ("rng_state.pth" if alone else f"rng_state_{rank()}.pth")))
        if is_main_process():
            writes.append(partial(atomic_write, staging / LATEST, tag))
        return writes

    def _tidy(self, target: Path, best: str | None) -> None:
        """Point to the new checkpoint and remove old ones: it is complete whether this succeeds or not."""
        try:
            point_to(target)
            rotate(target.parent, self.context.args.save_total_limit, [best])
        except OSError as error:
            logger.warning("%s is written, but tidying up %s failed: %s", target.name, target.parent, error)

    def _tolerate(self, error: SavingError) -> None:
        self._failed_saves += 1
        if self._failed_saves > self.context.args.max_failed_saves:
            raise error
        if is_main_process():  # all have the same to say
            logger.warning("%s; training goes on, free the disk before the next save", error)

    @contextmanager
    def _collecting_errors(self) -> Iterator[None]:
        """An error of the disk is kept until all processes meet, so that none waits for one that has left."""
        try:
            yield
        except _DISK_ERRORS as error:
            # What torch makes of the disk's own reason says less.
            if self._failure is None or isinstance(error, OSError) > isinstance(self._failure, OSError):
                self._failure = error

    def _raise_if_any_failed(self, target: Path, group: Any = None) -> None:
        """Wait for everyone; where anyone has failed, remove what was written and raise in all."""
        failure, self._failure = self._failure, None
        found = [each for each in everyone(failure and _one_line(failure), group) if each]
        if not found:
            return
        if is_main_process():
            shutil.rmtree(staging_of(target), ignore_errors=True)
        everyone(None, group)  # nobody goes on before it is gone
        earlier = [folder.name for folder in resumable_checkpoints(target.parent)]
        kept = f"{earlier[-1]} is the newest complete checkpoint" if earlier else "there is no checkpoint yet"
        raise SavingError(f"{target} could not be written ({found[0]}; {_free(target.parent)}); {kept}")

    def _consolidated(
        self, trained_only: bool, copy: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Weights as tensors of their own, whole, on the CPU of the main process; elsewhere none.

        With `trained_only`, those that a checkpoint in this form holds. Under ZeRO-1 and 2 weights are views of one
        large buffer, which safetensors refuses, so those are copied too.
        """
        import deepspeed  # at the top it would choose the device before the arguments are read

        model = self.context.model
        held = held_names(model)
        weights = {}
        for name, parameter in model.named_parameters():
            is_whole = not trained_only or name in held
            if not is_whole and name != HEAD:
                continue
            with deepspeed.zero.GatheredParameters([parameter]):  # does nothing unless ZeRO-3 has split it
                if is_main_process() and is_whole:
                    weights[name] = copy(parameter)
                elif is_main_process():
                    weights[NEW_HEAD_ROWS] = copy(new_head_rows(model, parameter))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        buffers = {
            name: copy(value)
            for name, value in model.state_dict().items()
            if name not in parameters and (not trained_only or name.startswith(NEW_PARTS))
        }
        return weights | buffers if is_main_process() else {}


def _as_it_is(value: Any) -> Callable[[], Any]:
    return lambda: value


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _restore_schedule(schedule: Any, state: dict[str, Any]) -> None:
    """Go to the step that `state` was saved at, on the curve that this run's flags give."""
    peaks: Any = getattr(schedule, "base_lrs", None)
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
