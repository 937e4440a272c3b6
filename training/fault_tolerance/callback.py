"""Where the trainer and what keeps its run from being lost meet: between two batches."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import TrainerCallback, TrainerState

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
from training.fault_tolerance.flags import SharedFlags
from training.fault_tolerance.nan_guard import LossGuard
from training.fault_tolerance.rng_state import RandomState
from training.fault_tolerance.signals import CTRL_C, StopRequest
from training.fault_tolerance.watchdog import StallWatch, last_stall, record_stall
from utils.data import Batch
from utils.data.bad_records import Origin
from utils.distributed import decided_by_main, everyone, is_main_process, rank, world_size

if TYPE_CHECKING:
    from training.trainer import VisualChatTrainer

T = TypeVar("T")


class Survival(TrainerCallback):
    """Stops a trainer on request with everything saved, before a loss that is no number, and where it stalls."""

    def __init__(self, trainer: "VisualChatTrainer", request: StopRequest) -> None:
        args = trainer.args
        self.trainer, self.request = trainer, request
        self.flags = SharedFlags(args.device)
        self.losses = LossGuard(args.output_dir, args.max_skipped_steps)
        self.stalls = StallWatch(args.stall_timeout, self._stalled)
        self._stopping = self._judged = self._dropped = self._evaluation_due = False
        self._first_step = self._saved_step = self._steps_since_log = self._dropped_since_log = 0
        self._random_state: RandomState | None = None
        self._stalled_before: int | None = None  # at which step

    # The trainer calls these.

    def reading(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches of the next step, as they are read."""
        while True:
            self.stalls.mark(f"waiting for the data of step {self._step}")
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch

    def enter(self, batch: Batch, evaluating: bool = False) -> None:
        """A batch begins; in evaluation, also the place to stop at."""
        kind = f"a batch with {batch.images} images" if batch.images else "a text-only batch"
        if not evaluating:
            self.stalls.mark(f"in step {self._step}, training on {kind}")
            return
        self.stalls.mark(f"evaluating after step {self._step - 1}, on {kind}")
        self.flags.clear()
        self.flags.send(self.request.reason is not None)
        if self.flags.read()[0]:
            self._save_and_stop()

    def note(self, loss: torch.Tensor, token_losses: torch.Tensor, origins: Sequence[Origin]) -> None:
        """What a training batch costs, before its backward pass."""
        self.flags.send(self.request.reason is not None, self.losses.note(loss, token_losses, origins))

    def guard(self, optimizer: torch.optim.Optimizer) -> None:
        """Let no step of the optimizer pass whose loss was no number on any process."""
        optimizer.register_step_pre_hook(self._before_optimizer)

    def check_gradient(self, norm: float | None) -> None:
        """The norm of the step's gradients, after the optimizer's step."""
        self._judge()  # where DeepSpeed has dropped the step itself, the optimizer was not asked
        if self._dropped or norm is None or abs(norm) < float("inf"):
            return
        if self.trainer.args.fp16:
            return  # a scale that was too large: DeepSpeed has dropped the step, and lowers the scale
        if getattr(self.trainer.model_wrapped.optimizer, "overflow", False):
            self._dropped = True
            self.losses.skip(self._step, "norm of the gradients")
            return
        raise TrainingDivergedError(
            f"the norm of the gradients is {norm} at step {self._step}, and the weights are spoilt by it:"
            f" {last_checkpoint(self.trainer.args.output_dir)}; lower --learning_rate"
        )

    def share_of_steps_kept(self) -> float:
        """What to multiply a mean over all steps since the last call by, for one over those not skipped."""
        steps, dropped = self._steps_since_log, self._dropped_since_log
        self._steps_since_log = self._dropped_since_log = 0
        return 1.0 if not dropped else float("nan") if steps == dropped else steps / (steps - dropped)

    def pausing(self) -> AbstractContextManager[None]:
        """Something is being written, which may take its time."""
        return self.stalls.paused()

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """A step that does not count goes through the optimizer, before the first one that does."""
        self._judged = True  # nothing was noted that could be judged
        with self.stalls.paused():
            yield
        self._judged = False

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A checkpoint is being written; when it is, the run ends if it was asked to."""
        state, control = self.trainer.state, self.trainer.control
        state.stateful_callbacks["TrainerControl"] = control.state()  # whether an evaluation is still due
        self.losses.catch_up()  # a run that goes on from here counts what was skipped
        with self.stalls.paused():
            yield
        if is_main_process():  # the others could come upon a checkpoint that it is about to remove
            newest = resumable_checkpoints(self.trainer.args.output_dir)[-1:]
            if [folder.name for folder in newest] == [checkpoint_name(state.global_step)]:
                self._saved_step = state.global_step
        if self._stopping:
            self._stop()

    # transformers calls these.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = self._saved_step = state.global_step
        self._evaluation_due = state.global_step > 0 and _evaluation_due(state)
        self.losses.restore(state.global_step)
        self._stalled_before = decided_by_main(lambda: last_stall(args.output_dir))
        self.request.listen()
        self.stalls.start()
        if state.global_step >= state.max_steps:  # no step will begin
            self._evaluate_now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._evaluate_now()  # the random state is restored here, and not before

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Between two batches of one step: what they left in the gradients is given up."""
        if self.flags.read()[0]:
            self._save_and_stop()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stop = self.flags.read()[0]
        self.flags.clear()
        self.losses.clear()
        self._steps_since_log += 1
        self._dropped_since_log += self._dropped
        self._judged = self._dropped = False
        self._random_state = RandomState.now()
        self._stopping = stop
        if stop and not float(state.epoch).is_integer():
            # An evaluation that is due stops before its first batch, otherwise saving ends the run.
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stopping:  # here, since what comes at the end of an epoch is due now
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._random_state = RandomState.now()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stalls.stop()

    # The rest.

    @property
    def _step(self) -> int:
        """The step that is being computed, counted from 1."""
        return self.trainer.state.global_step + 1

    def _evaluate_now(self) -> None:
        """The evaluation in which the run was stopped, from its beginning."""
        if self._evaluation_due:
            self._evaluation_due = False
            metrics = self.trainer._evaluate(None, None)
            self.trainer._determine_best_metric(metrics, None)

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._judge()
        if self._dropped:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # a parameter without a gradient is left as it is

    def _judge(self) -> None:
        """Once a step, on all processes: may the optimizer go on?"""
        if not self._judged:
            self._judged = True
            self._dropped = self.flags.read()[1]
            if self._dropped:
                self.losses.skip(self._step)

    def _save_and_stop(self) -> None:
        """Save the last step that is complete, as it was when it was, unless that has been done."""
        self._stopping = True
        saved = self.trainer.state.global_step in (self._first_step, self._saved_step)
        if not everyone(saved)[0]:  # the main process has written it, and knows
            self._random_state.restore()
            self.trainer._save_checkpoint(self.trainer.model, trial=None)
        self._stop()

    def _stop(self) -> None:
        reasons = everyone(self.request.reason)
        by = ", ".join(f"{reason} (rank {number})" for number, reason in enumerate(reasons) if reason)
        trainer = self.trainer
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        where = decided_by_main(lambda: last_checkpoint(trainer.args.output_dir))
        code = INTERRUPTED if CTRL_C in reasons else STOPPED
        raise StoppedBySignal(f"stopped after step {trainer.state.global_step} by {by}: {where}", code)

    def _stalled(self, place: str) -> None:
        """In the watchdog's thread; the others stall too, and are given the time to say where."""
        output, step = self.trainer.args.output_dir, self._step
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
            f"error: no progress for {self.stalls.timeout:g} s (--stall_timeout): {where} is {place}; {further}",
            flush=True,
        )
        if is_main_process():
            record_stall(output, step)
        time.sleep(max(self.stalls.timeout / 4, 1))
        end_now(MISTAKE if again else STALLED)


def _evaluation_due(state: TrainerState) -> bool:
    """Whether the checkpoint that training goes on from was written while its evaluation ran, or before it."""
    control = state.stateful_callbacks.get("TrainerControl", {})
    return bool(control.get("args", {}).get("should_evaluate"))
