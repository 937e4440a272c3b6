"""What a person sees while training runs: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PrinterCallback, ProgressCallback, TrainerState

from training.extension import Extension, RunContext
from utils.distributed import is_main_process

_WORTH_SAYING = 0.01  # a smaller share of time is not shown
_FAR_ABOVE = 1.25  # times the loss of guessing among all pieces


class ProgressReporter(Extension):
    """One readable line per log and evaluation, and on a terminal a bar under them; the main process only."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._evaluation: tqdm | None = None
        self._shown = is_main_process()
        self._is_terminal = sys.stderr.isatty()
        self._start = time.perf_counter()
        self._first_step = 0

    def begin(self, context: RunContext) -> None:
        """Take the place of transformers' own."""
        super().begin(context)
        for kind in (ProgressCallback, PrinterCallback):
            context.callbacks.remove_callback(kind)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._start, self._first_step = time.perf_counter(), state.global_step
        self._is_terminal = self._is_terminal and not args.disable_tqdm
        if self._shown and self._is_terminal:
            shown = {"desc": "training", "unit": "step", "dynamic_ncols": True}
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, **shown)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last steps too, whatever --logging_steps
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not (self._shown and self._is_terminal):
            return
        if self._evaluation is None:
            batches = len(kwargs["eval_dataloader"]) if kwargs.get("eval_dataloader") is not None else None
            self._evaluation = tqdm(total=batches, desc="evaluating", leave=False, dynamic_ncols=True)
        self._evaluation.update(1)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None
        each = _of_each(metrics, "eval_loss/", "{:.4f}")
        gate = f"  image gate {metrics['eval_image_gate']:.3f}" if "eval_image_gate" in metrics else ""
        self._write(f"{_place(state)}  evaluation loss {metrics['eval_loss']:.4f}{each}{gate}")
        if "eval_accuracy" in metrics:
            each = _of_each(metrics, "eval_accuracy/", "{:.1%}")
            took = f"in {metrics['eval_accuracy_seconds']:.1f} s"
            self._write(f"{_place(state)}  answers right {metrics['eval_accuracy']:.1%}{each}  {took}")

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        if "loss" not in logs:
            return
        parts = [f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.2e}"]
        if "tokens_per_second" in logs:
            parts.append(
                f"{logs['tokens_per_second']:,.0f} tokens/s"
                f" ({logs['supervised_tokens_per_second']:,.0f} supervised)"
            )
            parts.append(f"{logs['images_per_second']:,.1f} images/s")
            parts.append(f"{logs['peak_memory_gib']:.1f} GiB")
            if "mfu" in logs:
                parts.append(f"MFU {logs['mfu']:.1%}")
            if logs["data_wait_share"] >= _WORTH_SAYING:
                parts.append(f"{logs['data_wait_share']:.0%} waiting for data")
        if self._bar is None:
            parts.append(f"{self._left(state)} left")
        self._write(f"{_place(state)}  " + "  ".join(parts))
        is_first = not any("loss" in line for line in state.log_history[:-1])
        if is_first and (said := explain_first_loss(logs["loss"], kwargs["model"].config)):
            self._write(said)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _left(self, state: TrainerState) -> str:
        done = max(state.global_step - self._first_step, 1)
        seconds = (time.perf_counter() - self._start) / done * (state.max_steps - state.global_step)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

    def _write(self, line: str) -> None:
        if self._shown:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()


def explain_first_loss(loss: float, config: PreTrainedConfig) -> str | None:
    """What to do about a first loss far above that of guessing, ln V of a vocabulary of V pieces; else None."""
    guessing = math.log(config.get_text_config().vocab_size)
    if not loss > _FAR_ABOVE * guessing:
        return None
    if config.attention == "mmca" and config.image_gate == "none":
        why = "mmca adds what a second softmax reads of images to the text's, and the new projection's are random"
        what = "--image_gate head --image_layers none begins as the decoder was; or warm up longer (--num_warmup_steps)"
    else:
        why = "the decoder is thrown off by what it reads: images of a new projection, or an unusual chat format"
        what = "warm up longer (--num_warmup_steps), and look at the samples (--data_debug_path)"
    return f"the first loss {loss:.1f} is far above that of guessing, {guessing:.1f}: {why}; {what}"


def _of_each(metrics: dict[str, float], prefix: str, form: str) -> str:
    """The values of several datasets or kinds in brackets; of one alone, nothing."""
    parts = [
        f"{name.removeprefix(prefix)} {form.format(value)}"
        for name, value in metrics.items()
        if name.startswith(prefix)
    ]
    return f" ({', '.join(parts)})" if len(parts) > 1 else ""


def _place(state: TrainerState) -> str:
    width = len(str(state.max_steps))
    return f"step {state.global_step:>{width}}/{state.max_steps}  epoch {state.epoch or 0:.2f}"
