"""transformers' Trainer on DeepSpeed, with what is particular to this project and nothing else.

A step, in the order of the methods: `get_batch_samples` reads its batches; each goes forward (`compute_loss`) and
backward (`training_step`); before and after the optimizer the loss and the gradient are judged
(`_before_optimizer_step`, `_get_grad_norm`). What the processes agree on is a `Verdict`, and `_act_on` does it.
The loop, schedules, logging and flags are transformers'.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from accelerate.utils import DummyOptim
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProcessorMixin,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import EvalLoopOutput

from training.arguments.parser import VisualChatTrainingArguments
from training.batches.bad_batches import BadBatches
from training.batches.loaders import EpochSetter, Loaders
from training.checkpointing.run_record import Run
from training.checkpointing.writer import CheckpointWriter
from training.ds_configs import gather_by_layer
from training.fault_tolerance.callback import RunGuard, Verdict
from training.fault_tolerance.signals import StopRequest
from training.metrics.loss_by_dataset import LossByDataset
from training.metrics.mfu import Efficiency
from training.metrics.throughput import ThroughputMeter
from training.metrics.trackers import TensorBoard
from training.parameter_groups import parameter_groups
from training.run_context import RunContext
from utils.commands import UsageError
from utils.data import IGNORED_LABEL, Batch
from utils.data.bad_records import BadRecords
from utils.distributed import get_logger
from utils.model.loading import gathered

logger = get_logger(__name__)


class VisualChatTrainer(Trainer):
    """Trains a visual chat model on encoded conversations and writes checkpoint-N, best and final."""

    context: RunContext  # these two since training is prepared
    checkpoints: CheckpointWriter

    def __init__(
        self,
        model: PreTrainedModel,
        args: VisualChatTrainingArguments,
        processor: ProcessorMixin,
        collator: Any,
        train_dataset: Dataset,
        dataset_names: Sequence[str],
        run: Run,
        eval_dataset: Dataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
        bad_records: BadRecords | None = None,
        stop_request: StopRequest | None = None,
        check_answers: Callable[..., dict[str, float]] | None = None,
        dry_run: Callable[[RunContext], object] | None = None,
    ) -> None:
        """`dataset_names` are those that the records come from: each gets a loss of its own. Checkpoints record `run`.

        `bad_records` takes up bad ones that turn up while batches are read (`Collator`). Each evaluation has what
        `check_answers` measures of the model (`AnswerCheck.measure`). `dry_run` is called before the first step, and
        has to leave everything as it was.
        """
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            callbacks=[EpochSetter(), *(callbacks or [])],
        )
        self.loaders = Loaders(args, collator)
        self.throughput = ThroughputMeter(Efficiency.of(model, args))
        self.losses = LossByDataset(dataset_names)
        self.check_answers = check_answers
        self.bad = BadBatches(BadRecords() if bad_records is None else bad_records)
        self.remove_callback(ProgressCallback)  # our reporter shows what they do
        self.remove_callback(PrinterCallback)
        if self.pop_callback(TensorBoardCallback):
            self.add_callback(TensorBoard())
        if args.stage3_gather_layers and args.hf_deepspeed_config.is_zero3():
            gather_by_layer(model)
        self._batches: deque[Batch] = deque()  # of the step, those that are not trained on yet
        self._batch = Batch({})  # that is trained on
        self.run, self.dry_run = run, dry_run
        self._evaluation_due = False  # since the run was stopped in it
        self.guard = RunGuard(args, stop_request or StopRequest())
        self.add_callback(self.guard)

    # Preparation

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> tuple[torch.nn.Module, DataLoader]:
        """As transformers', which would insist on the frozen weights that our engine state leaves out."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self.context = RunContext(
            engine=self.deepspeed,
            state=self.state,
            args=self.args,
            model=self.model,
            processor=self.processing_class,
            schedule=self.lr_scheduler,
            save_random_state=self._save_rng_state,
        )
        self.checkpoints = CheckpointWriter(self.context, self.run)
        if resume_from_checkpoint is not None:
            self.checkpoints.restore(resume_from_checkpoint)
            # Logging, evaluating and saving are as often as flags say now.
            self.state.compute_steps(self.args, max_steps)
            control = self.state.stateful_callbacks.get("TrainerControl", {})
            self._evaluation_due = bool(control.get("args", {}).get("should_evaluate"))
        self.guard.begin(self.state)
        if self.dry_run is not None:
            with self.guard.pausing():
                self.dry_run(self.context)
        self.deepspeed.basic_optimizer.register_step_pre_hook(self._before_optimizer_step)
        return prepared

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `--optim` names (AdamW) over this project's parameter groups.

        Where a DeepSpeed configuration names another one, DeepSpeed makes that, of the same groups.
        """
        if self.optimizer is None:
            try:
                optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                self.optimizer = optimizer(self._parameter_groups(), **settings)
            except (ImportError, TypeError, ValueError) as error:  # not installed, or --optim_args do not fit
                optim = getattr(self.args.optim, "value", self.args.optim)
                raise UsageError(f"--optim {optim} cannot be used: {error}") from error
        elif isinstance(self.optimizer, DummyOptim):
            self.optimizer.params = self._parameter_groups()
        return self.optimizer

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(
            self.model,
            self.args.learning_rate,
            self.args.learning_rate_pretraining_components,
            self.args.weight_decay,
            self.args.image_gate_learning_rate,
            self.args.decoder_learning_rate,
            self.args.encoder_learning_rate,
            self.args.lora_learning_rate,
        )

    # A step

    def get_train_dataloader(self) -> DataLoader:
        """The training batches of this process (`Loaders.training`)."""
        return self.loaders.training(self.train_dataset, self._train_batch_size)

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """The evaluation batches of this process, in the order of the data."""
        return self.loaders.evaluation(eval_dataset or self.eval_dataset)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """The micro-batches of an optimizer step and their supervised tokens on all processes."""
        waited_for = self.throughput.waiting_for(self.guard.reading(epoch_iterator))
        batches = list(islice(waited_for, num_batches))
        inputs, supervised = super().get_batch_samples(
            iter([batch.inputs for batch in batches]), num_batches, device
        )
        self.bad.take(batches)
        if self.bad.strict:
            self.bad.exchange(device)
        self.throughput.step(batches)
        self._batches = deque(batches)
        return inputs, supervised.clamp(min=1)  # none at all: a loss of 0, not of 0 / 0

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """As transformers'; whose tokens cost how much is taken down."""
        origins = self._batch.origins
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.guard.note(loss, outputs.token_losses, origins)
        self.losses.add(origins, outputs.token_losses)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As transformers', unless the training stops here; a loss that is no number does not count."""
        self._evaluate_if_due()  # not before: the random state has been restored by now
        self._batch = self._batches.popleft()
        self._act_on(self.guard.before_batch(self._batch))
        loss = super().training_step(model, inputs, num_items_in_batch)
        return loss.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # without waiting for the device to know

    def _before_optimizer_step(self, *hooked: Any) -> None:
        self._act_on(self.guard.judge_step())

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.guard.judge_gradient(norm, getattr(self.context.engine.optimizer, "overflow", False))
        return norm

    def _act_on(self, verdict: Verdict) -> None:
        """Do what all processes have agreed on.

        Raises `StoppedBySignal` where that is to stop.
        """
        if verdict is Verdict.SKIP_STEP:
            for group in self.context.engine.basic_optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # a parameter without a gradient is left as it is
        elif verdict is Verdict.SAVE_AND_STOP:
            if not self.guard.is_saved():
                self.guard.back_to_last_step()
                self._save()
            self._stop()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: transformers' formula is for full training, and visits all modules in every step."""
        return 0

    # Evaluation and logging

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The mean loss over all supervised tokens: the same for any batch size and number of processes."""
        model = self.model_wrapped
        model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)  # loss, supervised tokens
        losses = LossByDataset(self.losses.names)
        with torch.no_grad():
            for batch in dataloader:
                inputs = self._entered(batch)
                self.bad.take([batch])
                if self.bad.strict:
                    self.bad.exchange(self.args.device)
                outputs = model(**inputs, num_items_in_batch=1)
                losses.add(batch.origins, outputs.token_losses)
                totals[0] += outputs.loss.double()
                totals[1] += inputs["labels"].ne(IGNORED_LABEL).sum()
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if self.args.world_size > 1:
            dist.all_reduce(totals)
        self.bad.exchange(self.args.device)
        loss, tokens = totals.tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / max(tokens, 1)}
        metrics |= losses.read(self.args.device, f"{metric_key_prefix}_loss")
        if self.check_answers is not None:
            metrics |= self.check_answers(self.model, self._entered, f"{metric_key_prefix}_accuracy")
        if gate := self.model.model.image_gate:
            with gathered(*gate.parameters()):
                sizes = torch.cat([factors.detach().float().abs() for factors in gate.parameters()])
            metrics[f"{metric_key_prefix}_image_gate"] = float(sizes.mean())
        return EvalLoopOutput(None, None, metrics, num_samples=len(dataloader.dataset))

    def _entered(self, batch: Batch) -> dict[str, Any]:
        """The inputs on the device of a batch of evaluation that the model is about to read."""
        self._act_on(self.guard.before_batch(batch, evaluating=True))
        return self._prepare_inputs(batch.inputs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As transformers', with its time left out of the throughput."""
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def _evaluate_if_due(self) -> None:
        """The evaluation in which the run was stopped, from its beginning."""
        if self._evaluation_due:
            self._evaluation_due = False
            self._determine_best_metric(self._evaluate(None, None), None)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add throughput and the datasets' losses to training's lines."""
        if "loss" in logs:
            self.bad.exchange(self.args.device)
            logs["loss"] *= self.guard.share_of_steps_kept()
            logs |= self.losses.read(self.args.device) | self.throughput.read(self.args.device)
        super().log(logs, start_time)

    # Checkpoints

    def export(self, folder: str | Path, form: str | None = None) -> None:
        """Write the model in the form full or trained (default: the arguments'); all processes must call."""
        self.checkpoints.export(folder, form or self.args.checkpoint_form)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As transformers'; a new best is written to {output_dir}/best at once, safe from later crashes."""
        if not math.isfinite(metrics.get("eval_loss", 0)):
            logger.warning("the evaluation loss is %s, so this step is not the best", metrics["eval_loss"])
            return False
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            saving = self.checkpoints.tolerating_failed_saves()
            with self.guard.pausing(), self.throughput.paused(), saving:
                self.export(Path(self.args.output_dir, "best"))
        return is_best

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._save()
        if self.guard.is_stopping:
            self._stop()

    def _save(self) -> None:
        """Write checkpoint-N, unless the disk refuses it and further saves may follow; all processes call."""
        self.bad.exchange(self.args.device)  # a resumed run finds those listed that it will not meet again
        self.state.stateful_callbacks["TrainerControl"] = self.control.state()  # is an evaluation still due?
        saving = self.checkpoints.tolerating_failed_saves()
        with self.guard.saving(), self.throughput.paused(), saving:
            self.checkpoints.save()

    def _stop(self) -> NoReturn:
        stopped = self.guard.stopped()
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        raise stopped

    def _finalize_training(self, *args: Any) -> Any:
        self._evaluate_if_due()  # no step has begun
        return super()._finalize_training(*args)

    def _load_best_model(self) -> None:
        self.checkpoints.load_engine(self.state.best_model_checkpoint)
