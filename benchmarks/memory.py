"""The plan of memory and traffic against real steps of DeepSpeed, setting by setting: `python -m benchmarks.memory`.

    torchrun --nproc_per_node 2 -m benchmarks.memory            # a small model, on two processes
    torchrun --nproc_per_node 2 -m benchmarks.memory --stages 3 --width 1024 --layers 8 --length 2048
    torchrun --nproc_per_node 4 -m benchmarks.memory --gpus_per_node 2   # as on two nodes: `--shard_within` too

Each line is a fresh model with random weights under DeepSpeed: two optimizer steps to fill the states and to learn the
order of the layers, then a measured one. Measured is the peak of the tensors of process 0: as CUDA's allocator counts
them, on a CPU by their storages, as PyTorch's dispatcher sees them come and go; and, where there are nodes, what one
takes in from the other, in bytes and times what learns, each collective counted as a ring.
"""

import argparse
import gc
import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig, LlamaConfig

from training.memory.plan import Training, predict_in_subprocess
from training.memory.shapes import LiveMemory, tensors_alive
from training.memory.states import Sharding
from training.memory.trace import BatchShape, enable_checkpointing, make_batch
from training.memory.traffic import traffic
from training.parameter_groups import parameter_groups
from training.sharding import Offload, place_frozen, zero_config
from utils.distributed import initialise, is_main_process, shut_down, world_size
from utils.model import VisualChatConfig, VisualChatForConditionalGeneration
from utils.model.building import freeze
from utils.model.vision import image_size

MB = 1e6
_TOKENS = 17  # of an image
_BUCKET = 500_000  # elements
_ROW = "{:<40}{:>12}{:>12}{:>9}"
_NODES = "{:>14}{:>12}{:>10}"


@dataclass(frozen=True)
class Case:
    """A setting to measure."""

    stage: int
    dtype: torch.dtype
    checkpointing: bool
    accumulation: int
    offload: Offload
    within: str = "all"

    def __str__(self) -> str:
        words = [f"ZeRO-{self.stage}", str(self.dtype).removeprefix("torch.").replace("loat", "")]
        words += ["checkpointing"] if self.checkpointing else []
        words += [f"x{self.accumulation}"] if self.accumulation > 1 else []
        words += [f"within {self.within}"] if self.within != "all" else []
        words += [f"{part} out" for part in ("optimizer", "weights") if getattr(self.offload, part) != "none"]
        return " ".join(words)


def main() -> None:
    """Measure all cases and print a line for each."""
    arguments = _arguments()
    initialise(use_cpu=not torch.cuda.is_available())
    shape = BatchShape(arguments.rows, arguments.length, arguments.images, _TOKENS, supervised=0.5)
    config = _config(arguments)
    if is_main_process():
        between = _NODES.format("between nodes", "predicted", "x learned") if arguments.gpus_per_node else ""
        print(_ROW.format("setting", "measured", "predicted", "") + between)
    for case in _cases(arguments.stages, arguments.gpus_per_node is not None):
        _measure(case, config, shape, arguments.gpus_per_node)
    shut_down()


def _cases(stages: list[int], nodes: bool) -> list[Case]:
    grid = itertools.product(stages, (torch.float32, torch.bfloat16), (False, True))
    cases = [
        Case(stage, dtype, recompute, 1 + (not recompute), Offload()) for stage, dtype, recompute in grid
    ]
    if nodes:
        placed = [
            replace(case, within=value) for value in ("node", "none") for case in cases if case.stage == 3
        ]
        return cases + placed
    moved = {2: [Offload("cpu")], 3: [Offload("cpu"), Offload("cpu", "cpu")]}
    return cases + [
        Case(stage, torch.bfloat16, False, 2, out) for stage in stages for out in moved.get(stage, [])
    ]


def _config(arguments: argparse.Namespace) -> VisualChatConfig:
    text = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.width,
        intermediate_size=arguments.width * 8 // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.width // 64,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    image_token = arguments.vocabulary - 1
    return VisualChatConfig(
        text_config=text, vision_config=vision, image_token_id=image_token, image_seq_length=_TOKENS
    )


class _BetweenNodes(TorchDispatchMode):
    """Counts the bytes that the first node takes in from the others, as rings of neighbours would send them."""

    def __init__(self, node: int) -> None:
        super().__init__()
        self.node = node
        self.received = 0.0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.namespace == "c10d" and (groups := [each for each in args if _is_group(each)]):
            ranks = dist.get_process_group_ranks(dist.ProcessGroup.unbox(groups[0]))
            if len({rank // self.node for rank in ranks}) > 1:
                whole = max(sum(map(_bytes, tree_leaves(each))) for each in args)
                rounds = 2 if "allreduce" in str(operation) else 1
                self.received += rounds * whole * (len(ranks) - 1) / len(ranks)
        return operation(*args, **(kwargs or {}))


def _is_group(value: object) -> bool:
    return isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type())


def _bytes(value: object) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def _measure(case: Case, config: VisualChatConfig, shape: BatchShape, node: int | None) -> None:
    import deepspeed  # here: importing it chooses the device

    settings = zero_config(case.stage, offload=case.offload)
    settings |= {
        "train_micro_batch_size_per_gpu": shape.rows,
        "gradient_accumulation_steps": case.accumulation,
        "train_batch_size": shape.rows * case.accumulation * world_size(),
        "gradient_clipping": 1.0,
        "bf16": {"enabled": case.dtype == torch.bfloat16},
        "fp16": {"enabled": False},
    }
    zero = settings[
        "zero_optimization"
    ]  # buckets in proportion to the small model: else they would be all of it
    if case.stage:
        zero["reduce_bucket_size"] = _BUCKET
    if case.stage == 3:
        zero |= {"stage3_prefetch_bucket_size": _BUCKET, "stage3_max_live_parameters": _BUCKET}
        if node:  # a large model is gathered again on the way back
            zero["stage3_max_reuse_distance"] = _BUCKET
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    gc.collect()
    others = {tensor.untyped_storage()._cdata for tensor in tensors_alive("cpu")}
    before = torch.cuda.memory_allocated() if on_gpu else 0
    torch.manual_seed(0)
    model = VisualChatForConditionalGeneration(config).to(case.dtype)
    freeze(model)
    model.train()
    if case.checkpointing:
        enable_checkpointing(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 0.0, 0.0), fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    if case.within != "all":
        place_frozen(engine.module, 1 if case.within == "none" else node or world_size())
    batch = make_batch(shape, config.image_token_id, 5, image_size(config.vision_config), "cpu")
    batch = {name: values.to(device) for name, values in batch.items()}

    def step() -> None:
        for _ in range(case.accumulation):
            engine.backward(engine(**batch, num_items_in_batch=shape.learned).loss)
            engine.step()

    step()
    step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        step()
        measured = torch.cuda.max_memory_allocated() - before
    else:
        run = LiveMemory("cpu")
        for tensor in tensors_alive("cpu"):
            if tensor.untyped_storage()._cdata not in others:
                run.enter(tensor)
        with run:
            step()
        measured = run.peak
    sent = _BetweenNodes(node or world_size())
    with sent:
        step()
    dist.barrier()
    if is_main_process():
        sharding = Sharding.of(settings, world_size(), case.within, node)
        plan = predict_in_subprocess(
            Training(config, case.dtype, (shape,), sharding, None, case.checkpointing, case.accumulation)
        )
        predicted = plan.peak + (0 if on_gpu else plan.states.host)
        numbers = (
            f"{measured / MB:.1f} MB",
            f"{predicted / MB:.1f} MB",
            f"{100 * (predicted / measured - 1):+.1f} %",
        )
        between = ""
        if node:
            expected = traffic(plan.weights, sharding, case.dtype, case.accumulation).between
            times = sent.received / (plan.weights.learned * case.dtype.itemsize)
            between = _NODES.format(f"{sent.received / MB:.2f} MB", f"{expected / MB:.2f} MB", f"{times:.2f}")
        print(_ROW.format(str(case), *numbers) + between, flush=True)
    dist.barrier()
    engine.destroy()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3], choices=[0, 1, 2, 3])
    parser.add_argument("--gpus_per_node", type=int, help="Processes of a node (default: all stand in one).")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
