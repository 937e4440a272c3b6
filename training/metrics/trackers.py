"""Where training reports to besides the terminal: TensorBoard, Weights & Biases and the others of `--report_to`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
    get_available_reporting_integrations,
)

from training.arguments.parser import VisualChatTrainingArguments
from training.extension import Extension, RunContext
from utils.atomic import BestEffort
from utils.commands import UsageError
from utils.distributed import decided_by_main

WANDB_RUN = "wandb_run.txt"
"""The file in the output folder that keeps the id of its run in Weights & Biases."""


def check_reporters(names: Sequence[str] | str | None) -> None:
    """Raises `UsageError` for a name that is unknown, and for one whose library is not installed."""
    names = [names] if isinstance(names, str) else names or []
    wanted = [name for name in names if name not in ("none", "all")]
    unknown = [name for name in wanted if name not in INTEGRATION_TO_CALLBACK]
    if unknown:
        raise UsageError(
            f"--report_to {unknown[0]}: not known; give some of {', '.join(INTEGRATION_TO_CALLBACK)}, or none"
        )
    if not wanted:
        return  # looking for libraries takes time
    available = get_available_reporting_integrations()
    for name in wanted:
        if name not in available:
            raise UsageError(
                f"--report_to {name}: its library is not installed; pip install {name.replace('_', '-')}, or"
                " leave it out (tensorboard is installed with this project)"
            )


class TensorBoard(TensorBoardCallback):
    """As transformers', which would end a run with the first event that a full disk does not take."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._events = BestEffort()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        with self._tolerated():
            super().on_train_begin(*args, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        with self._tolerated():
            super().on_log(*args, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        with self._tolerated():
            super().on_train_end(*args, **kwargs)

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        with self._events.writing(self.logging_dir or "what TensorBoard shows"):
            try:
                yield
            except OSError:  # a writer that has failed once stays so: the next line begins a new file
                self.tb_writer = None
                raise


class Trackers(Extension):
    """Starts a run of Weights & Biases before data are read, and mends TensorBoard."""

    def start(self, arguments: VisualChatTrainingArguments, resumed: Path | None) -> None:
        if "wandb" in arguments.report_to:
            output, name = arguments.output_dir, arguments.run_name
            decided_by_main(lambda: begin_wandb(output, name, go_on=resumed is not None))

    def begin(self, context: RunContext) -> None:
        super().begin(context)
        if context.callbacks.pop_callback(TensorBoardCallback):
            context.callbacks.add_callback(TensorBoard())


def begin_wandb(output_dir: str | Path, run_name: str | None, go_on: bool) -> None:
    """Start a run of Weights & Biases before anything expensive happens; transformers then writes into it.

    `go_on` takes up the run that this output folder had before: a resumed training is one curve. The project
    is `$WANDB_PROJECT`, or visualchat. For the main process.

    Raises `UsageError` where the service refuses (no key, no network, no such project).
    """
    import wandb  # optional

    kept = Path(output_dir, WANDB_RUN)
    before = kept.read_text().strip() if go_on and kept.is_file() else None
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "visualchat"),
            name=run_name,
            id=before,
            resume="allow" if before else None,
            dir=str(output_dir),
        )
    except wandb.Error as error:
        raise UsageError(
            f"--report_to wandb: {error}; log in (`wandb login`, or WANDB_API_KEY), or set WANDB_MODE=offline"
            " to write files alone"
        ) from error
    kept.write_text(f"{run.id}\n")
