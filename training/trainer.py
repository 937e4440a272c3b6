"""transformers' Trainer on DeepSpeed, with what is particular to this project and nothing else.

Its own code: parameter groups, global batches that do not depend on the number of processes, a loss that is a
mean over supervised tokens, atomic checkpoints in two forms, and throughput. The loop, schedules, logging and
flags are transformers'.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProcessorMixin,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_utils import EvalLoopOutput

from training.arguments import VisualChatTrainingArguments
from training.bad_batches import BadBatches
from training.checkpoints import TRAINER_STATE, Run, checkpoint_name, rotate
from training.ds_configs import gather_by_layer
from training.parameter_groups import parameter_groups
from training.sampling import GlobalBatchSampler, PaddedDataset
from training.throughput import ThroughputMeter
from utils import distributed
from utils.atomic import atomic_directory, begin_directory, commit_directory, staging_of
from utils.data.bad_data import BadRecords
from utils.data.encode import IGNORED_LABEL
from utils.data.lengths import measure
from utils.data.packed import PackedDataset
from utils.data.tolerant import TolerantDataset
from utils.model.checkpoint import save_full, save_trained_only


class TrainingDivergedError(RuntimeError):
    """The loss is not a number any more; the message is one line and says what to do."""


class VisualChatTrainer(Trainer):
    """Trains a visual chat model on encoded conversations and writes checkpoint-N, best and final."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: VisualChatTrainingArguments,
        processor: ProcessorMixin,
        collator: Any,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
        bad_records: BadRecords | None = None,
    ) -> None:
        """`bad_records` takes up those that turn up while batches are read (`Collator`)."""
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            callbacks=[_EpochSetter(), *(callbacks or [])],
        )
        self.throughput = ThroughputMeter()
        self.bad = BadBatches(BadRecords() if bad_records is None else bad_records)
        self.remove_callback(ProgressCallback)  # our reporter shows what they do
        self.remove_callback(PrinterCallback)
        if args.stage3_gather_layers and args.hf_deepspeed_config.is_zero3():
            gather_by_layer(model)
        stage = args.hf_deepspeed_config.get_value("zero_optimization.stage", 0)
        self.run = Run(args.world_size, stage, str(args.dtype).removeprefix("torch."))

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        """The training batches of this process, shuffled unless `train_sampling_strategy` is sequential."""
        dataset, batch_size = self.train_dataset, self._train_batch_size
        seed = None if self.args.train_sampling_strategy == "sequential" else self.args.seed

        def loader() -> DataLoader:
            return self._loader(dataset, batch_size, seed, self.args.dataloader_drop_last)

        if isinstance(dataset, PackedDataset):  # every epoch of this training has as many rows
            if self.args.max_steps <= 0:
                dataset.reserve(math.ceil(self.args.num_train_epochs))
            else:
                epochs = 1
                while epochs * max(self._steps(loader()), 1) < self.args.max_steps:
                    epochs += 1
                    dataset.reserve(epochs)
        return loader()

    def _steps(self, loader: DataLoader) -> int:
        return math.ceil(len(loader) / self.args.gradient_accumulation_steps)

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """The evaluation batches of this process, in the order of the data."""
        return self._loader(eval_dataset or self.eval_dataset, self.args.eval_batch_size)

    def _loader(
        self, dataset: Dataset, batch_size: int, seed: int | None = None, drop_last: bool = False
    ) -> DataLoader:
        lengths = None
        if self.args.train_sampling_strategy == "group_by_length":
            lengths = partial(_tokens, dataset)
        return DataLoader(
            PaddedDataset(dataset),
            batch_sampler=GlobalBatchSampler(
                len(dataset),
                batch_size,
                self.args.process_index,
                self.args.world_size,
                seed,
                drop_last,
                lengths,
                self.args.gradient_accumulation_steps,
            ),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,  # never persistent: they would miss set_epoch
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """The micro-batches of an optimizer step and their supervised tokens on all processes."""
        batches, supervised = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.bad.take(batches)
        if self.bad.strict:
            self.bad.exchange(device)
        self.throughput.count(batches)
        return batches, supervised.clamp(min=1)  # none at all: a loss of 0, not of 0 / 0

    # Optimisation

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `--optim` names (AdamW) over this project's parameter groups."""
        if self.optimizer is None:
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = parameter_groups(
                self.model,
                self.args.learning_rate,
                self.args.learning_rate_pretraining_components,
                self.args.weight_decay,
            )
            self.optimizer = optimizer(groups, **settings)
        return self.optimizer

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
                self.bad.take([batch])
                if self.bad.strict:
                    self.bad.exchange(self.args.device)
                inputs = self._prepare_inputs(batch)
                totals[0] += model(**inputs, num_items_in_batch=1).loss.double()
                totals[1] += inputs["labels"].ne(IGNORED_LABEL).sum()
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if self.args.world_size > 1:
            dist.all_reduce(totals)
        self.bad.exchange(self.args.device)
        loss, tokens = totals.tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / max(tokens, 1)}
        return EvalLoopOutput(None, None, metrics, num_samples=len(dataloader.dataset))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As transformers', with its time left out of the throughput."""
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add throughput to training's lines, and stop at a loss that is not a number."""
        if "loss" in logs:
            self.bad.exchange(self.args.device)
            if not math.isfinite(logs["loss"]):
                raise TrainingDivergedError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}: lower --learning_rate, or"
                    " go on from an earlier checkpoint with --resume_from_checkpoint"
                )
            logs |= self.throughput.read(self.args.device)
        super().log(logs, start_time)

    # Checkpoints

    def export(self, folder: str | Path, form: str | None = None) -> None:
        """Write the model in the form full or trained (default: the arguments'); all processes must call."""
        form = form or self.args.checkpoint_form
        weights = self._consolidated(trained_only=form == "trained")
        if distributed.is_main_process():
            with atomic_directory(folder) as staging:
                self._write_model(staging, form, weights)
        distributed.barrier()

    def _write_model(self, folder: Path, form: str, weights: dict[str, torch.Tensor]) -> None:
        save = save_trained_only if form == "trained" else save_full
        save(self.model, self.processing_class, folder, state_dict=weights)

    def _consolidated(self, trained_only: bool) -> dict[str, torch.Tensor]:
        """Weights as tensors of their own, whole, on the CPU of the main process; elsewhere none.

        With `trained_only`, those that no base model holds. Under ZeRO-1 and 2 weights are views of one large
        buffer, which safetensors refuses, so those are copied too.
        """
        import deepspeed  # at the top it would choose the device before the arguments are read

        own = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]  # hold added tokens
        own.append(self.model.model.multi_modal_projector)
        not_in_base_models = {id(parameter) for module in own for parameter in module.parameters()}
        weights = {}
        for name, parameter in self.model.named_parameters():
            if trained_only and not (parameter.requires_grad or id(parameter) in not_in_base_models):
                continue
            with deepspeed.zero.GatheredParameters([parameter]):  # does nothing unless ZeRO-3 has split it
                if distributed.is_main_process():
                    weights[name] = parameter.detach().to("cpu", copy=True)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        buffers = {name: value for name, value in self.model.state_dict().items() if name not in parameters}
        return weights | buffers if distributed.is_main_process() else {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As transformers'; a new best is written to {output_dir}/best at once, safe from later crashes."""
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            with self.throughput.paused():
                self.export(Path(self.args.output_dir, "best"))
        return is_best

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write checkpoint-N aside, from all processes, and give it its name when all is on the disk."""
        self.bad.exchange(self.args.device)  # a resumed run finds those listed that it will not meet again
        with self.throughput.paused():
            target = Path(self.args.output_dir, checkpoint_name(self.state.global_step))
            staging = staging_of(target)
            if distributed.is_main_process():
                begin_directory(target)
            weights = self._consolidated(trained_only=True)
            distributed.barrier()  # the folder is there
            if not self.args.save_only_model:
                self.deepspeed.save_checkpoint(str(staging), exclude_frozen_parameters=True)
                self._save_rng_state(str(staging))
            if self.state.best_global_step:
                best = Path(self.args.output_dir, checkpoint_name(self.state.best_global_step))
                self.state.best_model_checkpoint = str(best) if best == target or best.is_dir() else None
            if distributed.is_main_process():
                self._write_model(staging, "trained", weights)
                torch.save(self.lr_scheduler.state_dict(), staging / "scheduler.pt")
                self.run.save(staging)
                self.state.save_to_json(str(staging / TRAINER_STATE))
            distributed.barrier()  # everyone has written
            if distributed.is_main_process():
                commit_directory(staging, target)
                rotate(self.args.output_dir, self.args.save_total_limit, [self.state.best_model_checkpoint])
            distributed.barrier()

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> tuple[torch.nn.Module, DataLoader]:
        """As transformers', which would insist on the frozen weights that our engine state leaves out."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            self.run.check(Path(resume_from_checkpoint))
            self._load_engine(resume_from_checkpoint)
            scheduler = torch.load(Path(resume_from_checkpoint, "scheduler.pt"), weights_only=True)
            self.lr_scheduler.load_state_dict(scheduler)
        return prepared

    def _load_best_model(self) -> None:
        self._load_engine(self.state.best_model_checkpoint)

    def _load_engine(self, folder: str) -> None:
        self.deepspeed.load_checkpoint(folder, load_module_strict=False)


class _EpochSetter(TrainerCallback):
    """Tells sampler and data which epoch begins, also after a resume, when transformers wraps them away."""

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: DataLoader, **kwargs: Any
    ) -> None:
        epoch = int(state.epoch or 0)
        train_dataloader.batch_sampler.set_epoch(epoch)
        train_dataloader.dataset.set_epoch(epoch)


def _tokens(dataset: TolerantDataset, epoch: int) -> np.ndarray:
    return measure(dataset.sketch(epoch)).tokens
