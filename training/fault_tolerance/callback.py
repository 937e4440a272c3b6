"""Fault tolerance between two batches: all processes agree on a verdict, and the trainer acts on it."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.arguments.parser import VisualChatTrainingArguments
from training.exit_codes import (
    INTERRUPTED,
    MISTAKE,
    STALLED,
    STOPPED,
    StoppedBySignal,
    TrainingDivergedError,
    end_now,
    last_checkpoint,
)
from training.extension import Extension, RandomState, RunContext, Verdict
from training.fault_tolerance.nan_guard import SKIPPED_STEPS, NanGuard
from training.fault_tolerance.output_lock import reserved
from training.fault_tolerance.peers import PeerWatch, end_after
from training.fault_tolerance.signals import CTRL_C, StopRequest
from training.fault_tolerance.watchdog import STALLED_AT, Watchdog, last_stall, record_stall
from utils.data import Batch
from utils.distributed import decided_by_main, everyone, is_main_process, rank, world_size


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


class RunGuard(Extension):
    """Judges a training's steps: may it go on, is this step skipped, does it save and stop? Ends it where it stalls,
    and where another process is gone.
    """

    args: VisualChatTrainingArguments  # these five since the training has begun
    flags: SharedFlags
    losses: NanGuard
    watchdog: Watchdog
    _random_state: RandomState  # after the last step

    def __init__(self) -> None:
        self.request = StopRequest()
        self._peers: PeerWatch | None = None
        self._step = 1  # that is being computed
        self._verdict: Verdict | None = None  # on its loss
        self._steps_since_log = self._skipped_since_log = 0
        self._stalled_before: int | None = None  # at which step

    @contextmanager
    def around(self, arguments: VisualChatTrainingArguments) -> Iterator[None]:
        """One job writes into the output folder, and where a process of it is gone, the others end too."""
        self.request.leave = partial(_leave_at_once, arguments.output_dir)
        self._peers = PeerWatch(partial(end_after, output_dir=arguments.output_dir))
        with reserved(arguments.output_dir):
            yield

    def leave(self, code: int, reason: str) -> None:
        if self._peers is not None:
            self._peers.leave(code, reason)

    def begin(self, context: RunContext) -> None:
        """Listen to signals and watch, from the step that the training has come to."""
        super().begin(context)
        self.args, step = context.args, context.state.global_step
        if self.args.overwrite_output_dir:
            decided_by_main(self._remove_earlier)
        self.flags = SharedFlags(self.args.device)
        self.losses = NanGuard(self.args.output_dir, self.args.max_skipped_steps)
        self.watchdog = Watchdog(self.args.stall_timeout, self._stalled)
        self._step, self._random_state = step + 1, RandomState.now()
        self.losses.restore(step)
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

    def computed(
        self, batch: Batch, loss: torch.Tensor, token_losses: torch.Tensor, evaluating: bool = False
    ) -> None:
        if not evaluating:
            bad = self.losses.note(loss, token_losses, batch.origins)
            self.flags.send(self.request.reason is not None, bad)

    def judge_step(self) -> Verdict:
        """The optimizer is about to step: may it, or is the step skipped? Decided once a step, by all processes.

        Raises `TrainingDivergedError` in all of them where too many steps were skipped.
        """
        if self._verdict is None:
            self._verdict = Verdict.SKIP_STEP if self.flags.read()[1] else Verdict.CONTINUE
            if self._verdict is Verdict.SKIP_STEP:
                self.context.finish_saving()  # the run may end here, and says which checkpoint is the last
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
        self.context.finish_saving()
        if not overflowed:
            raise TrainingDivergedError(
                f"the norm of the gradients is {norm} at step {self._step}, and the weights are spoilt by it:"
                f" {last_checkpoint(self.args.output_dir)}; lower --learning_rate"
            )
        self._verdict = Verdict.SKIP_STEP
        self.losses.skip(self._step, "norm of the gradients")

    # What the trainer tells and asks

    def reading(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            self.watchdog.mark(f"waiting for the data of step {self._step}")
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch

    def pausing(self) -> AbstractContextManager[None]:
        return self.watchdog.paused()

    @contextmanager
    def saving(self) -> Iterator[None]:
        self.losses.catch_up()  # a run that goes on from here counts what was skipped
        with self.watchdog.paused():
            yield

    def back_to_last_step(self) -> None:
        self._random_state.restore()

    def stopped(self) -> StoppedBySignal:
        reasons = everyone(self.request.reason)
        by = ", ".join(f"{reason} (rank {number})" for number, reason in enumerate(reasons) if reason)
        where = decided_by_main(lambda: last_checkpoint(self.args.output_dir))
        code = INTERRUPTED if CTRL_C in reasons else STOPPED
        return StoppedBySignal(f"stopped after step {self._step - 1} by {by}: {where}", code)

    def add_to_log(self, logs: dict[str, float]) -> None:
        """The mean loss over all steps becomes one over those that were not skipped."""
        steps, skipped = self._steps_since_log, self._skipped_since_log
        self._steps_since_log = self._skipped_since_log = 0
        if skipped:
            logs["loss"] *= float("nan") if steps == skipped else steps / (steps - skipped)

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

    def _remove_earlier(self) -> None:
        for name in (SKIPPED_STEPS, STALLED_AT):
            Path(self.args.output_dir, name).unlink(missing_ok=True)

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


def _leave_at_once(output_dir: str) -> None:
    said = f"stopped at once by Ctrl-C, without saving; {last_checkpoint(output_dir)}"
    end_now(INTERRUPTED, said if is_main_process() else "")
