"""transformers' Trainer on DeepSpeed, with what is particular to this project and nothing else.

A step, in the order of the methods: `get_batch_samples` reads its batches; each goes forward (`compute_loss`) and
backward (`training_step`); before and after the optimizer the loss and the gradient are judged
(`_before_optimizer_step`, `_get_grad_norm`). By extensions: what they and the processes agree on is a `Verdict`, and
`_act_on` does it. The loop, schedules, logging and flags are transformers'.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from accelerate.utils import DummyOptim
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, ProcessorMixin, Trainer
from transformers.trainer_utils import EvalLoopOutput

from training.arguments.parser import VisualChatTrainingArguments
from training.checkpointing.run_record import Run
from training.checkpointing.writer import CheckpointWriter
from training.extension import Extension, RunContext, Verdict
from training.loaders import EpochSetter, evaluation_loader, training_loader
from training.parameter_groups import parameter_groups
from training.sharding import gather_by_layer, place_frozen
from utils.commands import UsageError
from utils.data import IGNORED_LABEL, Batch
from utils.distributed import get_logger
from utils.model.loading import gathered

logger = get_logger(__name__)


class VisualChatTrainer(Trainer):
    """Trains a visual chat model on encoded conversations and writes checkpoint-N, best and final."""

    optimizer: Any  # these two as transformers has them
    control: Any
    context: RunContext  # these two since training is prepared
    checkpoints: CheckpointWriter

    def __init__(
        self,
        model: PreTrainedModel,
        args: VisualChatTrainingArguments,
        processor: ProcessorMixin,
        collator: Any,
        train_dataset: Dataset,
        run: Run,
        eval_dataset: Dataset | None = None,
        extensions: Sequence[Extension] = (),
    ) -> None:
        """Checkpoints record `run`."""
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            callbacks=[EpochSetter(), *extensions],
        )
        self.extensions = extensions
        if args.stage3_gather_layers and args.hf_deepspeed_config.is_zero3():
            gather_by_layer(model)
        self._batches: deque[Batch] = deque()  # of the step, those that are not trained on yet
        self._batch = Batch({})  # that is trained on
        self.run = run
        self._evaluation_due = False  # since the run was stopped in it

    # Preparation

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> tuple[torch.nn.Module, DataLoader]:
        """As transformers', which would insist on the frozen weights that our engine state leaves out."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if self.args.frozen_over:
            place_frozen(self.model, self.args.frozen_over)
        self.context = RunContext(
            engine=self.deepspeed,
            state=self.state,
            args=self.args,
            model=self.model,
            processor=self.processing_class,
            schedule=self.lr_scheduler,
            save_random_state=self._save_rng_state,
            callbacks=self.callback_handler,
            enter=self._entered,
            pausing=partial(self._within, "pausing"),
            finish_saving=self.finish_saving,
        )
        self.checkpoints = CheckpointWriter(self.context, self.run)
        if resume_from_checkpoint is not None:
            self.checkpoints.restore(resume_from_checkpoint)
            # Logging, evaluating and saving are as often as flags say now.
            self.state.compute_steps(self.args, max_steps)
            control = self.state.stateful_callbacks.get("TrainerControl", {})
            self._evaluation_due = bool(control.get("args", {}).get("should_evaluate"))
        for each in self.extensions:
            each.begin(self.context)
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
        """The training batches of this process."""
        return training_loader(self.args, self.data_collator, self.train_dataset, self._train_batch_size)

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """The evaluation batches of this process, in the order of the data."""
        return evaluation_loader(self.args, self.data_collator, eval_dataset or self.eval_dataset)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """The micro-batches of an optimizer step and their supervised tokens on all processes."""
        for each in self.extensions:
            epoch_iterator = each.reading(epoch_iterator)
        batches = list(islice(epoch_iterator, num_batches))
        inputs, supervised = super().get_batch_samples(
            iter([batch.inputs for batch in batches]), num_batches, device
        )
        self._batches = deque(batches)
        return inputs, supervised.clamp(min=1)  # none at all: a loss of 0, not of 0 / 0

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """As transformers'; extensions are told."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        for each in self.extensions:
            each.computed(self._batch, loss, outputs.token_losses)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As transformers', unless the training stops here; a loss that is no number does not count."""
        self._evaluate_if_due()  # not before: the random state has been restored by now
        self._batch = self._batches.popleft()
        for each in self.extensions:
            self._act_on(each.before_batch(self._batch), each)
        loss = super().training_step(model, inputs, num_items_in_batch)
        return loss.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # without waiting for the device to know

    def _before_optimizer_step(self, *hooked: Any) -> None:
        for each in self.extensions:
            self._act_on(each.judge_step(), each)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        for each in self.extensions:
            each.judge_gradient(norm, getattr(self.context.engine.optimizer, "overflow", False))
        return norm

    def _act_on(self, verdict: Verdict, by: Extension) -> None:
        """Do what an extension has said in all processes alike.

        Raises `StoppedBySignal` where that is to stop.
        """
        if verdict is Verdict.SKIP_STEP:
            for group in self.context.engine.basic_optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # a parameter without a gradient is left as it is
        elif verdict is Verdict.SAVE_AND_STOP:
            self.finish_saving()
            if self.checkpoints.saved_step != self.state.global_step:
                by.back_to_last_step()
                self._save(stopping=True)
            self._stop(by)

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
        with torch.no_grad():
            for batch in dataloader:
                inputs = self._entered(batch)
                outputs = model(**inputs, num_items_in_batch=1)
                for each in self.extensions:
                    each.computed(batch, outputs.loss, outputs.token_losses, evaluating=True)
                totals[0] += outputs.loss.double()
                totals[1] += inputs["labels"].ne(IGNORED_LABEL).sum()
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if self.args.world_size > 1:
            dist.all_reduce(totals)
        loss, tokens = totals.tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / max(tokens, 1)}
        for each in self.extensions:
            each.add_to_evaluation(metrics)
        if gate := self.model.model.image_gate:
            with gathered(*gate.parameters()):
                sizes = torch.cat([factors.detach().float().abs() for factors in gate.parameters()])
            metrics[f"{metric_key_prefix}_image_gate"] = float(sizes.mean())
        return EvalLoopOutput(None, None, metrics, num_samples=len(dataloader.dataset))

    def _entered(self, batch: Batch) -> dict[str, Any]:
        """The inputs on the device of a batch of evaluation that the model is about to read."""
        for each in self.extensions:
            self._act_on(each.before_batch(batch, evaluating=True), each)
        return self._prepare_inputs(batch.inputs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As transformers', extensions around it."""
        with self._within("evaluating"):
            return super().evaluate(*args, **kwargs)

    def _evaluate_if_due(self) -> None:
        """The evaluation in which the run was stopped, from its beginning."""
        if self._evaluation_due:
            self._evaluation_due = False
            self._determine_best_metric(self._evaluate(None, None), None)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers'; extensions add to training's lines."""
        if "loss" in logs:
            for each in self.extensions:
                each.add_to_log(logs)
        super().log(logs, start_time)

    # Checkpoints

    def export(self, folder: str | Path, form: str | None = None) -> None:
        """Write the model in the form full or trained (default: the arguments'); all processes must call."""
        with self._within("saving"):
            self.checkpoints.export(folder, form or self.args.checkpoint_form)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As transformers'; a new best is written to {output_dir}/best at once, safe from later crashes."""
        if not math.isfinite(metrics.get("eval_loss", 0)):
            logger.warning("the evaluation loss is %s, so this step is not the best", metrics["eval_loss"])
            return False
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            with self.checkpoints.tolerating_failed_saves():
                self.export(Path(self.args.output_dir, "best"))
        return is_best

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        stopping = [each for each in self.extensions if each.is_stopping]
        self._save(bool(stopping))
        for each in stopping:
            self._stop(each)

    def _save(self, stopping: bool) -> None:
        """Write checkpoint-N, unless the disk refuses it and further saves may follow; all processes call."""
        self.state.stateful_callbacks["TrainerControl"] = self.control.state()  # is an evaluation still due?
        with self._within("saving"):
            self.checkpoints.save(self.args.save_in_background and not stopping)

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is being written in the background, if one is; all processes call."""
        checkpoints = getattr(self, "checkpoints", None)  # a training may end before it has any
        if checkpoints and checkpoints.is_writing:
            with self._within("pausing"):
                checkpoints.finish()

    @contextmanager
    def _within(self, what: str) -> Iterator[None]:
        """Within what extensions put around `evaluating`, `pausing` or `saving`."""
        with ExitStack() as around:
            for each in self.extensions:
                around.enter_context(getattr(each, what)())
            yield

    def _stop(self, by: Extension) -> NoReturn:
        stopped = by.stopped()
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        raise stopped

    def _finalize_training(self, *args: Any) -> Any:
        self._evaluate_if_due()  # no step has begun
        self.finish_saving()
        return super()._finalize_training(*args)

    def _load_best_model(self) -> None:
        self.checkpoints.load_engine(self.state.best_model_checkpoint)
