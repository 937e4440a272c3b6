"""`--dry_run_worst_batch`: before the first step, the largest batches go through a whole step on the real device.

Rows of full length, with the most images and with none, forward, backward and through the optimizer, at a
learning rate of zero. Its peak of memory stands in the log beside the plan's. Afterwards everything is as it
was: weights, moments, random generators, DeepSpeed's counters; the training that follows is the same, bit by
bit, as without it.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from training.arguments.model_and_data import images_per_row
from training.extension import Extension, Prepared, RandomState, RunContext
from training.memory.plan import MemoryPlan, Training, predict_in_subprocess
from training.memory.shapes import LiveMemory, tensors_alive
from training.memory.states import Sharding
from training.memory.trace import BatchShape, largest_batches, make_batch
from utils.commands import GIB, UsageError
from utils.distributed import everyone, get_logger, is_main_process, local_world_size
from utils.model.lora import PUBLISHED, LoraSettings
from utils.model.quantised import UNQUANTISED, FrozenBits
from utils.model.vision import image_size

logger = get_logger(__name__)

_COUNTERS = ("micro_steps", "global_steps", "global_samples", "skipped_steps")  # of DeepSpeed's engine
_SHORT = 64  # tokens
_SCALERS = ("loss_scaler", "loss_scale_config")  # of its optimizers, for fp16


class WorstBatch(Extension):
    """The dry run before the first step."""

    def prepare(self, parts: Prepared) -> None:
        data = parts.data_arguments
        rows, length = parts.arguments.per_device_train_batch_size, data.max_seq_len
        images, tokens = images_per_row(data), parts.processor.image_seq_length
        self.batches = largest_batches(rows, length, images, tokens, packed=data.packing)
        self.model_arguments = parts.model_arguments

    def begin(self, context: RunContext) -> None:
        super().begin(context)
        train, bits = self.model_arguments.train or PUBLISHED, self.model_arguments.quantised
        with context.pausing():
            dry_run(context, self.batches, train, bits)


def dry_run(
    context: RunContext,
    batches: Sequence[BatchShape],
    train: Sequence[str] = PUBLISHED,
    frozen_bits: FrozenBits = UNQUANTISED,
) -> None:
    """Put the largest batches through a step that changes nothing, and log its peak of memory; all processes call.

    train: the parts that learn (see `utils.model.lora`). frozen_bits: of quantised matrices.
    """
    device = context.args.device
    training = _training(context, batches, train, frozen_bits)
    plan = everyone(predict_in_subprocess(training) if is_main_process() else None)[0]
    assert plan is not None, "the main process has made it"
    meter = _Meter(device)  # before copies are made of what is to be put back
    with _as_before(context.engine):
        try:
            with meter:
                _steps(context, batches)
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"the largest batch does not fit: {plan.batch.rows} x {plan.batch.length} tokens,"
                f" {plan.batch.images} images a row, predicted {plan.peak / GIB:.2f} GiB; python -m"
                " helper.plan_memory says what fits"
            ) from error
    available = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    predicted = plan.peak + (0 if available else plan.states.host)  # a CPU holds what is offloaded as well
    logger.info("%s", _described(plan, predicted, max(everyone(meter.peak)), available))


def _described(plan: MemoryPlan, predicted: int, measured: int, available: int | None) -> str:
    """The line in the log: bytes at the peak, on the process that needed the most."""
    batch = plan.batch
    room = f", of {available / GIB:.2f} GiB" if available else ""
    return (
        f"largest batch ({batch.rows} x {batch.length} tokens, {batch.images} images a row): predicted"
        f" {predicted / GIB:.3f} GiB, measured {measured / GIB:.3f} GiB ({100 * (predicted / measured - 1):+.1f} %)"
        f"{room}"
    )


def _training(
    context: RunContext, batches: Sequence[BatchShape], train: Sequence[str], frozen_bits: FrozenBits
) -> Training:
    args, config = context.args, context.model.config
    return Training(
        config=config,
        dtype=args.dtype,
        batches=tuple(batches),
        sharding=Sharding.of(
            args.hf_deepspeed_config.config, args.world_size, args.shard_within, local_world_size()
        ),
        lora=LoraSettings(**config.lora) if config.lora else None,
        gradient_checkpointing=args.gradient_checkpointing,
        accumulation=args.gradient_accumulation_steps,
        train=tuple(train),
        frozen_bits=frozen_bits,
    )


def _steps(context: RunContext, batches: Sequence[BatchShape]) -> None:
    """A step in which every batch meets the gradients of another; without accumulation a step for each.

    A short one comes first, after which the optimizer has its states, as it will have from then on.
    """
    _step(context, [replace(batches[-1], rows=1, length=_SHORT, images=0)])
    if context.args.gradient_accumulation_steps == 1:
        for batch in batches:
            _step(context, [batch])
    else:
        _step(context, [*batches, batches[0]])


def _step(context: RunContext, batches: Sequence[BatchShape]) -> None:
    engine = context.engine
    engine.train()  # as each step of training does; loading left the layers without it, and checkpointing asks them
    for number, batch in enumerate(batches, 1):
        inputs = _inputs(context, batch)
        engine.set_gradient_accumulation_boundary(number == len(batches))
        engine.backward(engine(**inputs, num_items_in_batch=batch.learned).loss, scale_wrt_gas=False)
        del inputs
    engine.step()


def _inputs(context: RunContext, shape: BatchShape) -> dict[str, torch.Tensor]:
    config = context.model.config
    text = next(iter(context.processor.tokenizer("a", add_special_tokens=False).input_ids))
    batch = make_batch(shape, config.image_token_id, text, image_size(config.vision_config), device="cpu")
    return {name: values.to(context.args.device) for name, values in batch.items()}


class _Meter:
    """The peak of tensors' memory over a block: as CUDA's allocator counts it, on a CPU by their storages."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0
        self._live = LiveMemory("cpu")
        if device.type != "cuda":
            for tensor in tensors_alive("cpu"):
                self._live.enter(tensor)

    def __enter__(self) -> "_Meter":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)  # those that are logged begin with the training
        else:
            self._live.__exit__(*error)
            self.peak = self._live.peak


@contextmanager
def _as_before(engine: Any) -> Iterator[None]:
    """Put back everything that a step at a learning rate of zero changes.

    Raises `UsageError` for an optimizer whose first step does not begin with zeros.
    """
    sharded, optimizer = engine.optimizer, engine.basic_optimizer
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        raise UsageError(
            f"--dry_run_worst_batch knows how to put Adam back as it was, not {type(optimizer).__name__}: leave it out"
        )
    random = RandomState.now()
    counters = {name: getattr(engine, name) for name in _COUNTERS}
    scalers = {
        name: copy.deepcopy(vars(getattr(sharded, name))) for name in _SCALERS if hasattr(sharded, name)
    }
    rates = [group["lr"] for group in optimizer.param_groups]
    states = {parameter: _copied(state) for parameter, state in optimizer.state.items()}
    weights = [
        (each, each.detach().cpu().clone()) for group in optimizer.param_groups for each in group["params"]
    ]
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for parameter, state in optimizer.state.items():
            _put_back(state, states.get(parameter, {}))
        for name, values in scalers.items():
            vars(getattr(sharded, name)).update(values)
        for name, value in counters.items():
            setattr(engine, name, value)
        random.restore()
    if not all(torch.equal(each.detach().cpu(), before) for each, before in weights):
        raise UsageError(
            "the largest batch gave gradients that are no numbers, and its step spoilt the weights: try a smaller"
            " --per_device_train_batch_size, or leave out --dry_run_worst_batch"
        )


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    }


def _put_back(state: dict[str, Any], before: dict[str, Any]) -> None:
    """In place, since DeepSpeed refers to the tensors; what was not there before begins with zeros."""
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            value.zero_() if name not in before else value.copy_(before[name])
        else:
            state[name] = before.get(name, 0)
