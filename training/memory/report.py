"""A memory plan in words and tables."""

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from training.memory.plan import HEADROOM, OUTSIDE, MemoryPlan, Planner, Training, within
from training.memory.traffic import traffic
from utils.commands import GIB

_KINDS = {
    "weights": "weights, as this process holds them",
    "gathered": "weights of others, gathered to compute with",
    "optimizer": "optimizer states and master weights",
    "gradients": "gradients",
    "communication": "buffers of communication",
    "activations": "activations at the peak",
}
_ENOUGH_TOKENS = (
    1200  # a device and pass: below, gathering 7B's weights takes longer than computing (docs/scaling.md)
)


def print_report(
    training: Training, memory: float, host: float, planner: Planner, bandwidths: tuple[float, float]
) -> None:
    """Print all that `helper.plan_memory` says about a training on devices of `memory` bytes each.

    host: main memory that a process may use, in bytes. bandwidths: bytes a second into a node, and into a GPU.
    """
    plan = planner.plan(training)
    lines: list[RenderableType] = [Text(line) for line in _verdict(planner, plan, memory)]
    if training.sharding.gpus > 1 and not training.frozen_bits:
        lines += placement(training, memory, planner, bandwidths)
    lines += [Text(line) for line in _recommendation(planner, plan, memory, host)]
    shown = Group(Text(heading(plan), style="bold"), Padding(table(plan, memory), (1, 0)), *lines)
    Console(highlight=False, soft_wrap=True).print(shown)


def placement(
    training: Training, memory: float, planner: Planner, bandwidths: tuple[float, float]
) -> list[RenderableType]:
    """`--shard_within` under ZeRO-3: memory, bytes and seconds of each value."""
    network, inside = (each / 1e9 for each in bandwidths)
    columns = ("--shard_within", "GiB on a GPU", "", "GB between nodes", "GB in a node", "seconds")
    shown = Table(*columns, box=None, pad_edge=False)
    for column in (1, 3, 4, 5):
        shown.columns[column].justify = "right"
    for choice in within(training):
        plan = planner.plan(choice)
        sent = traffic(plan.weights, choice.sharding, choice.dtype, choice.accumulation)
        bytes_ = (f"{each / 1e9:,.2f}" for each in (sent.between, sent.inside))
        fits, seconds = "fits" if plan.fits(memory) else "too much", f"{sent.seconds(*bandwidths):,.3f}"
        shown.add_row(choice.sharding.within, size(plan.peak), fits, *bytes_, seconds)
    nodes = training.sharding.nodes
    title = (
        f"ZeRO-3 on {nodes} {'nodes' if nodes > 1 else 'node'}: what a step sends, at {network:g} GB/s into a node and"
        f" {inside:g} GB/s into a GPU"
    )
    return [Text(), Text(title), Padding(shown, (1, 0))]


def heading(plan: MemoryPlan) -> str:
    """Model, setting and batch in two lines."""
    training, batch = plan.training, plan.batch
    weights = plan.weights
    return (
        f"{weights.total / 1e9:.2f}B parameters, {weights.learned / 1e6:,.0f}M of them learn; {training.describe()};"
        f" {str(training.dtype).removeprefix('torch.')}; {training.sharding.gpus} GPUs\n"
        f"largest batch of a GPU: {batch.rows} x {batch.length} tokens, {batch.images} images a row: of"
        f" {batch.rows * batch.length:,} tokens {batch.rows * batch.image_tokens:,} are images',"
        f" {batch.learned:,} are learned"
    )


def table(plan: MemoryPlan, memory: float) -> Table:
    """What a GPU holds at the peak, by kind."""
    shown = Table("on each GPU, at the peak", "GiB", box=None, pad_edge=False)
    shown.columns[1].justify = "right"
    for kind, words in _KINDS.items():
        if kind in plan.device:
            shown.add_row(words, size(plan.device[kind]))
        if kind == "activations" and kind in plan.device:
            for part, bytes_ in sorted(plan.activations.parts.items(), key=lambda each: -each[1]):
                if bytes_ >= plan.activations.peak / 200:
                    shown.add_row(Text(f"  {part}", style="dim"), Text(size(bytes_), style="dim"))
    shown.add_row("together", size(plan.peak), style="bold")
    shown.add_row("beside PyTorch: CUDA, NCCL; and pieces left over", size(OUTSIDE + HEADROOM * memory))
    shown.add_row("the GPU has", size(memory))
    if plan.states.host:
        shown.add_row("in main memory, for each GPU", size(plan.states.host))
    if plan.saving:
        shown.add_row("in main memory, for saving in the background", size(plan.saving))
    if plan.states.disk:
        shown.add_row("on NVMe, for each GPU", size(plan.states.disk))
    return shown


def size(bytes_: float) -> str:
    """Bytes in GiB."""
    return f"{bytes_ / GIB:,.2f}"


def _verdict(planner: Planner, plan: MemoryPlan, memory: float) -> list[str]:
    """Whether it fits, and how many rows would."""
    training = plan.training
    lines = ["This fits." if plan.fits(memory) else "This does not fit."]
    largest = planner.largest(training, memory)
    if largest is None:
        lines.append(
            f"Largest batch in this setting ({training.describe()}): none, one row alone is too much."
        )
    else:
        rows = largest.batch.rows
        more = " or more" if rows == planner.most_rows(training) else ""
        lines.append(
            f"Largest batch in this setting ({training.describe()}): {rows} rows{more},"
            f" {size(largest.peak)} GiB."
        )
    return lines


def _recommendation(planner: Planner, plan: MemoryPlan, memory: float, host: float) -> list[str]:
    """The one setting to take."""
    training = plan.training
    cheapest = planner.cheapest(training, memory, host)
    if cheapest is None:
        return ["No setting fits this batch: fewer rows, shorter rows, or more or larger GPUs."]
    chosen = cheapest.training
    lines = [f"Cheapest setting that fits this batch: {chosen.describe()}, {size(cheapest.peak)} GiB."]
    if training.frozen_bits:
        return lines  # ZeRO-3 is no choice
    if chosen.sharding.stage < 3:
        lines.append(
            "The frozen weights fit a GPU whole, so ZeRO stage 1 or 2 gathers nothing; stage 3 with --shard_within all"
            f" gathers {size(plan.weights.total * training.dtype.itemsize)} GiB in every pass."
        )
    elif (tokens := plan.batch.rows * plan.batch.length) < _ENOUGH_TOKENS:
        lines.append(
            f"With {tokens:,} tokens a pass, gathering takes longer than computing: longer rows (--packing true) or"
            " more of them hide it."
        )
    return lines
