"""Fault tolerance between two batches: all processes agree on a verdict, and the trainer acts on it."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerState

from training.arguments.parser import VisualChatTrainingArguments
from training.checkpointing.folders import checkpoint_name, resumable_checkpoints
from training.fault_tolerance.exit_codes import (
    INTERRUPTED,
    MISTAKE,
    STALLED,
    STOPPED,
    StoppedBySignal,
    TrainingDivergedError,
    end_now,
    last_checkpoint,
)
from training.fault_tolerance.nan_guard import NanGuard
from training.fault_tolerance.rng_state import RandomState
from training.fault_tolerance.signals import CTRL_C, StopRequest
from training.fault_tolerance.watchdog import Watchdog, last_stall, record_stall
from utils.data import Batch
from utils.data.bad_records import Origin
from utils.distributed import decided_by_main, everyone, is_main_process, rank, world_size

T = TypeVar("T")


class Verdict(Enum):
    """How a training goes on; the same on all processes."""

    CONTINUE = 1
    SKIP_STEP = 2
    """The loss of this step is NaN or infinite: no weight changes."""
    SAVE_AND_STOP = 3
    """A process was asked to stop: what this step has begun is given up, and its predecessor saved."""


class SharedFlags:
    """Two notes a batch: somebody was asked to stop, somebody's loss is not a number.

    Sending costs one reduction of two numbers. Reading waits for the device, so it happens where that has
    caught up anyway: after the backward pass, or inside the optimizer's step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sent: list[torch.Tensor] = []  # [2] of each batch

    def send(self, stop: bool, bad_loss: torch.Tensor | bool = False) -> None:
        """Exchange this process's notes on a batch; all processes call. `bad_loss`: a scalar, True where so."""
        notes = torch.zeros(2, dtype=torch.int32, device=self.device)
        notes[0] = stop
        notes[1] = bad_loss
        if world_size() > 1:
            dist.all_reduce(notes, op=dist.ReduceOp.MAX)
        self._sent.append(notes)

    def read(self) -> tuple[bool, bool]:
        """Whether anybody is to stop, and whether any loss was bad, since the last `clear`."""
        if not self._sent:
            return False, False
        stop, bad_loss = torch.stack(self._sent).amax(dim=0).tolist()
        return bool(stop), bool(bad_loss)

    def clear(self) -> None:
        """Begin a new step."""
        self._sent.clear()


class RunGuard(TrainerCallback):
    """Judges a training's steps: may it go on, is this step skipped, does it save and stop? Ends it where it stalls."""

    def __init__(self, args: VisualChatTrainingArguments, request: StopRequest) -> None:
        self.args, self.request = args, request
        self.flags = SharedFlags(args.device)
        self.losses = NanGuard(args.output_dir, args.max_skipped_steps)
        self.watchdog = Watchdog(args.stall_timeout, self._stalled)
        self.is_stopping = False  # the next checkpoint ends the run
        self._step = 1  # that is being computed
        self._verdict: Verdict | None = None  # on its loss
        self._first_step = self._saved_step = self._steps_since_log = self._skipped_since_log = 0
        self._random_state: RandomState | None = None  # after the last step
        self._stalled_before: int | None = None  # at which step

    def begin(self, state: TrainerState) -> None:
        """Listen to signals and watch, from the step that `state` has come to; all processes call."""
        self._first_step = self._saved_step = state.global_step
        self._step = state.global_step + 1
        self.losses.restore(state.global_step)
        self._stalled_before = decided_by_main(lambda: last_stall(self.args.output_dir))
        self.request.listen()
        self.watchdog.start()

    # Verdicts

    def before_batch(self, batch: Batch, evaluating: bool = False) -> Verdict:
        """A batch begins: go on with it, or save and stop; all processes call."""
        kind = f"a batch with {batch.images} images" if batch.images else "a text-only batch"
        if evaluating:
            self.watchdog.mark(f"evaluating after step {self._step - 1}, on {kind}")
            self.flags.clear()
            self.flags.send(self.request.reason is not None)
        if self.flags.read()[0]:
            return Verdict.SAVE_AND_STOP
        if not evaluating:
            self.watchdog.mark(f"in step {self._step}, training on {kind}")
        return Verdict.CONTINUE

    def note(self, loss: torch.Tensor, token_losses: torch.Tensor, origins: Sequence[Origin]) -> None:
        """What a training batch costs, before its backward pass."""
        self.flags.send(self.request.reason is not None, self.losses.note(loss, token_losses, origins))

    def judge_step(self) -> Verdict:
        """The optimizer is about to step: may it, or is the step skipped? Decided once a step, by all processes.

        Raises `TrainingDivergedError` in all of them where too many steps were skipped.
        """
        if self._verdict is None:
            self._verdict = Verdict.SKIP_STEP if self.flags.read()[1] else Verdict.CONTINUE
            if self._verdict is Verdict.SKIP_STEP:
                self.losses.skip(self._step)
        return self._verdict

    def judge_gradient(self, norm: float | None, overflowed: bool) -> None:
        """The norm of the step's gradients, after the optimizer's step, which DeepSpeed drops itself on overflow.

        Raises `TrainingDivergedError` where it is no number and the step was made.
        """
        skipped = self.judge_step() is Verdict.SKIP_STEP  # DeepSpeed may not have asked the optimizer
        if skipped or norm is None or abs(norm) < float("inf"):
            return
        if self.args.fp16:
            return  # a scale that was too large: DeepSpeed has dropped the step, and lowers the scale
        if not overflowed:
            raise TrainingDivergedError(
                f"the norm of the gradients is {norm} at step {self._step}, and the weights are spoilt by it:"
                f" {last_checkpoint(self.args.output_dir)}; lower --learning_rate"
            )
        self._verdict = Verdict.SKIP_STEP
        self.losses.skip(self._step, "norm of the gradients")

    # What the trainer tells and asks

    def reading(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches of the next step, as they are read."""
        while True:
            self.watchdog.mark(f"waiting for the data of step {self._step}")
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch

    def pausing(self) -> AbstractContextManager[None]:
        """The block may take its time, as what is written does."""
        return self.watchdog.paused()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A checkpoint of the last complete step is being written."""
        self.losses.catch_up()  # a run that goes on from here counts what was skipped
        with self.watchdog.paused():
            yield
        if is_main_process():  # the others could come upon a checkpoint that it is about to remove
            newest = resumable_checkpoints(self.args.output_dir)[-1:]
            if [folder.name for folder in newest] == [checkpoint_name(self._step - 1)]:
                self._saved_step = self._step - 1

    def is_saved(self) -> bool:
        """Whether the last complete step is on the disk, or is the one that this start began with; all call."""
        return everyone(self._step - 1 in (self._first_step, self._saved_step))[0]  # the main process knows

    def back_to_last_step(self) -> None:
        """Put the random generators back to where they were after the last complete step."""
        self._random_state.restore()

    def stopped(self) -> StoppedBySignal:
        """How the run ends, saved or not; all processes call."""
        reasons = everyone(self.request.reason)
        by = ", ".join(f"{reason} (rank {number})" for number, reason in enumerate(reasons) if reason)
        where = decided_by_main(lambda: last_checkpoint(self.args.output_dir))
        code = INTERRUPTED if CTRL_C in reasons else STOPPED
        return StoppedBySignal(f"stopped after step {self._step - 1} by {by}: {where}", code)

    def share_of_steps_kept(self) -> float:
        """What to multiply a mean over all steps since the last call by, for one over those not skipped."""
        steps, skipped = self._steps_since_log, self._skipped_since_log
        self._steps_since_log = self._skipped_since_log = 0
        return 1.0 if not skipped else float("nan") if steps == skipped else steps / (steps - skipped)

    # transformers calls these.

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.is_stopping = self.flags.read()[0]
        self.flags.clear()
        self.losses.clear()
        self._steps_since_log += 1
        self._skipped_since_log += self._verdict is Verdict.SKIP_STEP
        self._verdict, self._step = None, state.global_step + 1
        self._random_state = RandomState.now()
        if self.is_stopping and not float(state.epoch).is_integer():
            # An evaluation that is due stops before its first batch, otherwise saving ends the run.
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.is_stopping:  # here, since what comes at the end of an epoch is due now
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.flags.clear()
        self._random_state = RandomState.now()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watchdog.stop()

    def _stalled(self, place: str) -> None:
        """In the watchdog's thread; the others stall too, and are given the time to say where."""
        output, step = self.args.output_dir, self._step
        # Another process may have been a step behind when it was recorded.
        again = self._stalled_before is not None and step <= self._stalled_before + 1
        where = f"rank {rank()} of {world_size()} ({socket.gethostname()}, pid {os.getpid()})"
        further = last_checkpoint(output)
        if again:
            further = (
                f"the run stalled at step {self._stalled_before} before, so starting it again will not help: find out"
                " what it waits for there, the data of these steps (--dataloader_num_workers 0 reads them in this"
                " process) or another machine"
            )
        print(
            f"error: no progress for {self.watchdog.timeout:g} s (--stall_timeout): {where} is {place}; {further}",
            flush=True,
        )
        if is_main_process():
            record_stall(output, step)
        time.sleep(max(self.watchdog.timeout / 4, 1))
        end_now(MISTAKE if again else STALLED)
