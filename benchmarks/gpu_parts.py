"""The parts of `benchmarks.gpu`: each yields its results one by one, as flat records.

A part measures on a GPU with the shapes of a 7B decoder; `miniature` is the same on a CPU with tiny ones, to see
that it runs.
"""

import importlib.util
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from benchmarks import attention, layer, parity
from benchmarks.chat import Dialogue
from benchmarks.generate import Steps
from benchmarks.layouts import mixture
from benchmarks.random_models import IMAGE_TOKENS, random_model
from benchmarks.train_step import Step
from benchmarks.turns import memory_bandwidth, product_speed, take_turns, timed
from training.memory.trace import BatchShape, enable_checkpointing, meta_model, trace
from training.metrics.mfu import peak_flops
from utils.model import VisualChatForConditionalGeneration, freeze

Result = dict[str, str | float | int | bool | None]

ATTENTION_SIZES = ((1024, 4), (2048, 8), (4096, 16))
"""Text tokens and images of 256 tokens: 2,048, 4,096 and 8,192 tokens in all."""


class Place:
    """Where a part measures: the GPU at real sizes, or a CPU in miniature."""

    def __init__(self, miniature: bool) -> None:
        self.miniature = miniature
        self.device = "cpu" if miniature else "cuda"
        self.dtype = torch.float32 if miniature else torch.bfloat16
        self.size = "tiny" if miniature else "7b"
        self.rounds = 1 if miniature else 5

    def of(self, miniature: object, real: object) -> object:
        """The one or the other."""
        return miniature if self.miniature else real

    def median(self, work: Callable[[], object], repeats: int = 1) -> float | None:
        """Seconds of a call, `repeats` of which follow one another; None where memory does not suffice."""

        def one(_round: int) -> float:
            return timed(lambda: [work() for _ in range(repeats)]) / repeats

        values = take_turns({"": one}, self.rounds).get("")
        self.free()
        return statistics.median(values) if values else None

    def free(self) -> None:
        if not self.miniature:
            torch.cuda.empty_cache()


def machine(place: Place) -> Iterator[Result]:
    """What it runs on, and the limits that the other parts are compared with."""
    speed, bandwidth = product_speed(place.dtype, place.device), memory_bandwidth(torch.device(place.device))
    known = None if place.miniature else torch.cuda.get_device_properties(0)
    yield {
        "device": "CPU" if known is None else known.name,
        "memory, GB": None if known is None else known.total_memory / 1e9,
        "torch": torch.__version__,
        "matrix product, TFLOP/s": speed / 1e12,
        "copy, GB/s": bandwidth / 1e9,
        "peak by data sheet, TFLOP/s": None if known is None else (peak_flops(known.name) or 0) / 1e12,
    }


def kernels(place: Place) -> Iterator[Result]:
    """Every kernel that trains on a GPU, against the dense definition in float64, forward and backward."""
    names = [name for name in parity.KERNELS if name != "flash" or importlib.util.find_spec("flash_attn")]
    known = parity.cases(("masked",), ("4/2x8",)) if place.miniature else parity.cases(tuple(names))
    for case in known:
        if place.miniature and str(case) == "decoder, compiled, bfloat16":
            continue  # compiling for a CPU takes long
        result: Result = {"kernel": case.kernel, "case": str(case), "error": None, "right": False, "note": ""}
        try:
            used, error = case.errors(place.device)
            result |= {"error": error, "right": error <= case.tolerance}
            if used != case.kernel:
                result["note"] = f"{used} ran in its place"
        except Exception as error:  # one kernel's failure must not hide what the others do
            result["note"] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            )
        yield result
        place.free()


def train(place: Place) -> Iterator[Result]:
    """One training step (forward and backward) of a 7B model beside a ViT-L, and the memory plan's word on it."""
    model, _ = random_model(place.size, place.dtype, place.device)
    freeze(model)
    model.train()
    rows = place.of(
        {"64 + 1 x 256": (64, 1, 1), "packed, 2 conversations": (128, 2, 2)},
        {"1,024 + 4 x 256": (1024, 4, 1), "4,096 packed": (2048, 8, 4)},
    )
    peak = None if place.miniature else peak_flops(torch.cuda.get_device_name())
    for checkpointing in (False, True):
        if checkpointing:
            enable_checkpointing(model)
        for name, (text, images, conversations) in rows.items():
            step = Step(model, text, images, 0.25, conversations)
            setting = {"row": name, "checkpointing": checkpointing}
            yield setting | _train_step(place, model, step, images, checkpointing, peak)
            if not checkpointing:
                yield from ({"row": name} | cost for cost in _largest_costs(place, step))
            place.free()
        if not checkpointing and not place.miniature:  # compiling for a CPU takes long
            with _compiled_elementwise(model):
                seconds = place.median(lambda step=step: step.run("ours"))
            yield {"row": name, "variant": "norms and MLPs by torch.compile", "step, s": seconds}


_SKIPPING = "ours, images in no layer"


def _train_step(
    place: Place,
    model: VisualChatForConditionalGeneration,
    step: Step,
    images: int,
    checkpointing: bool,
    peak: float | None,
) -> Result:
    measured = waits = None
    step.run("ours")
    if not place.miniature:
        torch.cuda.reset_peak_memory_stats()
        step.run("ours")
        measured = torch.cuda.max_memory_allocated() / 1e9
        waits = _waits_for_the_gpu(lambda: step.run("ours"))
    seconds = place.median(lambda: step.run("ours"))
    if seconds is None:
        return {"note": "it does not fit into memory"}
    causal, skipping = (place.median(lambda form=form: step.run(form)) for form in ("causal", _SKIPPING))
    shape = BatchShape(1, step.tokens, images, IMAGE_TOKENS, 0.25, packed=True)
    planned = trace(meta_model(model.config, place.dtype, None, checkpointing), shape, keep_gradients=True)
    weights = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    expected = (weights + planned.peak) / 1e9
    return {
        "step, s": seconds,
        "tokens/s": step.tokens / seconds,
        "MFU": step.operations() / seconds / peak if peak else None,
        "causal, s": causal,
        "images in no layer, s": skipping,
        "peak, GB": measured,
        "plan, GB": expected,
        "plan / peak": expected / measured if measured else None,
        "waits for the GPU": waits,
    }


def _waits_for_the_gpu(work: Callable[[], object]) -> int:
    """How often the host waits for the device during a call."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in said)


def _largest_costs(place: Place, step: Step, count: int = 5) -> Iterator[Result]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if not place.miniature:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step.run("ours")
    field = "self_cpu_time_total" if place.miniature else "self_device_time_total"
    costs = sorted(profile.key_averages(), key=lambda each: getattr(each, field), reverse=True)
    total = sum(getattr(each, field) for each in costs) or 1
    for each in costs[:count]:
        yield {"cost": each.key[:60], "share": getattr(each, field) / total}


@contextmanager
def _compiled_elementwise(model: VisualChatForConditionalGeneration) -> Iterator[None]:
    """Norms and MLPs of the decoder's layers compiled; attention is entered as it is."""
    parts = [
        part
        for each in model.model.language_model.layers
        for part in (each.input_layernorm, each.post_attention_layernorm, each.mlp)
    ]
    for part in parts:
        part.compile()
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None


def attention_speed(place: Place) -> Iterator[Result]:
    """Attention alone, and in a layer, against causal attention and the dense form of 2023."""
    speed = product_speed(place.dtype, place.device)
    sizes = place.of(((64, 1),), ATTENTION_SIZES)
    for heads in place.of(("4x16",), ("32x128", "32/8x128")):
        for text, images in sizes:
            for backward in (False, True):
                rows = mixture(text, images)
                case = attention.Case(rows, attention.Shape.of(heads), place.dtype, place.device, backward)
                case.prepare()
                ours, causal, dense = (
                    place.median(work, repeats)
                    for work, repeats in ((case.ours, 10), (case.causal, 10), (case.dense, 1))
                )
                limit = case.operations / speed
                yield {
                    "what": f"attention, {heads}",
                    "text + images": rows.name,
                    "pass": "fb" if backward else "f",
                    **_milliseconds(ours, causal, dense),
                    "limit, ms": limit * 1e3,
                    "times the limit": ours / limit if ours else None,
                }
                del case
                place.free()
    width = place.of(1024, 4096)
    one = layer.random_layer(width, place.dtype, place.device)
    for text, images in sizes:
        rows = mixture(text, images)
        for backward in (False, True):
            kinds = rows.kinds.to(place.device)
            contenders = [layer.contender(one, form, kinds, backward) for form in layer.FORMS.values()]
            seconds = [place.median(lambda work=work: work(0)) for work in contenders]
            yield {
                "what": f"layer of width {width}",
                "text + images": rows.name,
                "pass": "fb" if backward else "f",
                **_milliseconds(*seconds),
            }


def _milliseconds(ours: float | None, causal: float | None, dense: float | None) -> Result:
    found = {"ours, ms": ours, "causal, ms": causal, "dense, ms": dense}
    times: Result = {name: value and value * 1e3 for name, value in found.items()}
    return times | {"faster than causal": causal / ours if ours and causal else None}


def generate(place: Place) -> Iterator[Result]:
    """Decode against the memory's bandwidth, the first token of a question about images seen before, 4 bits."""
    with torch.inference_mode():
        model, processor = random_model(place.size, place.dtype, place.device)
    bandwidth = memory_bandwidth(model.device)
    context, tokens = place.of((600, 2), (2048, 32))
    images = place.of(2, 4)

    def decode(what: str) -> Result:
        steps = Steps(model, processor, context, images, tokens)
        seconds = statistics.median(take_turns({"": lambda _: steps.beside()}, place.rounds)[""])
        return {
            "what": what,
            "ms a token": seconds * 1e3,
            "tokens/s": 1 / seconds,
            "share of bandwidth": steps.bytes_read() / seconds / bandwidth,
        }

    yield decode(f"decode, {str(place.dtype).removeprefix('torch.')}, {context:,} tokens of dialogue")
    dialogue = Dialogue(model, processor, place.of(2, 8))
    ways: dict[str, Callable[[int], float]] = {
        "first token, images kept, same dialogue": dialogue.goes_on,
        "first token, images kept, another dialogue": dialogue.is_another,
        "first token, all read again": lambda number: dialogue.is_read_again(number, "ours"),
        "first token, all read again, images in no layer": lambda number: dialogue.is_read_again(
            number, _SKIPPING
        ),
        "first token, all read again, causal": lambda number: dialogue.is_read_again(number, "causal"),
    }
    measured = take_turns(ways, place.rounds)
    for name, values in measured.items():
        yield {"what": name, "ms": statistics.median(values) * 1e3}
    if importlib.util.find_spec("bitsandbytes") is None:
        yield {"what": "decode, 4 bits", "note": "bitsandbytes is not installed"}
        return
    if place.miniature:
        yield {"what": "decode, 4 bits", "note": "on a GPU only"}  # kernels for CPUs want other widths
        return
    _to_four_bits(model, place.dtype)
    yield decode("decode, 4 bits")


def _to_four_bits(model: VisualChatForConditionalGeneration, dtype: torch.dtype) -> None:
    """The decoder's matrices in NF4, as bitsandbytes loads them."""
    import bitsandbytes

    for parent in list(model.model.language_model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                new = bitsandbytes.nn.Linear4bit(
                    child.in_features, child.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
                )
                weight = bitsandbytes.nn.Params4bit(
                    child.weight.detach().clone(), requires_grad=False, quant_type="nf4"
                )
                new.weight = weight.to(child.weight.device)
                setattr(parent, name, new)


def learn(place: Place) -> Iterator[Result]:
    """Some training steps of a tiny model in bfloat16 here and in float32 on the CPU: both losses fall alike."""
    steps = place.of(10, 50)
    curves = {
        "float32 on the CPU": _curve("cpu", False, steps),
        f"bfloat16 on the {place.of('CPU', 'GPU')}": _curve(place.device, True, steps),
    }
    (_, exact), (_, ours) = curves.items()
    for name, losses in curves.items():
        yield {
            "what": name,
            **{f"loss at {n}": losses[n - 1] for n in dict.fromkeys((1, 10, 25, steps)) if n <= steps},
        }
    furthest = max(abs(first - second) for first, second in zip(exact, ours, strict=True))
    yield {
        "what": "largest difference",
        "loss": furthest,
        "right": furthest < 0.1 and ours[-1] < ours[0] - 0.5,
    }


def _curve(device: str, autocast: bool, steps: int) -> list[float]:
    model, _ = random_model("tiny", torch.float32, "cpu")
    model = model.to(device)
    freeze(model)
    model.train()
    batches = [Step(model, 48, 1, 0.5, seed=number) for number in range(2)]
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for number in range(steps):
        batch = batches[number % len(batches)]
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = model(**batch.inputs, labels=batch.labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


PARTS: dict[str, tuple[Callable[[Place], Iterator[Result]], float]] = {
    "machine": (machine, 0.1),
    "kernels": (kernels, 0.30),
    "train": (train, 0.35),
    "attention": (attention_speed, 0.40),
    "generate": (generate, 0.70),
    "learn": (learn, 1.0),
}
"""In the order of worth; each with its share of the time that is left when its turn comes."""
