"""A decoder layer, forward and backward, under our attention, causal attention and the form of 2023.

    taskset -c 1 python -m benchmarks.layer

The layer is transformers' own, frozen as in training: gradients are computed for what goes in, not for weights.
A size is text + images of 256 tokens, spread through the text.
"""

import argparse
import math
import statistics
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaModel

from benchmarks import two_softmaxes
from benchmarks.layouts import mixture
from benchmarks.turns import add_run_flags, peak_memory, print_machine, take_turns, timed

FORMS = {"ours": "mmca", "causal": "sdpa", "dense": two_softmaxes.NAME}
WIDTHS = {  # inner width, query heads, key-value heads
    1024: (2816, 16, 16),
    2048: (5504, 16, 16),
    4096: (11008, 32, 32),
}


def main() -> None:
    """Print the table."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4096 if on_gpu else 1024, choices=WIDTHS)
    sizes = ["1024+4", "2048+8", "4096+16"] if on_gpu else ["1024+4", "256+8"]
    parser.add_argument("--sizes", nargs="+", default=sizes)
    add_run_flags(parser, 5, "bfloat16" if on_gpu else "float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    layer = random_layer(arguments.width, getattr(torch, arguments.dtype), arguments.device)
    print(f"layer of width {arguments.width}, {arguments.dtype}; f forward, fb forward and backward")
    print_machine()
    print("| text + images | pass | ours, ms | causal, ms | dense, ms | faster than causal | than dense |")
    print("|---" * 7 + "|")
    for size in arguments.sizes:
        rows = mixture(*map(int, size.split("+")))
        for backward in (False, True):
            contenders = {
                name: contender(layer, form, rows.kinds.to(arguments.device), backward)
                for name, form in FORMS.items()
            }
            measured = take_turns(contenders, arguments.rounds)
            medians = {name: statistics.median(values) * 1e3 for name, values in measured.items()}
            ours, causal, dense = medians["ours"], medians["causal"], medians.get("dense", math.nan)
            print(
                f"| {rows.name} | {'fb' if backward else 'f'} | {ours:.1f} | {causal:.1f} | {dense:.1f}"
                f" | {causal / ours:.2f} | {dense / ours:.2f} |",
                flush=True,
            )
    print(f"peak memory of all: {peak_memory()}")


def random_layer(width: int, dtype: torch.dtype, device: str) -> LlamaModel:
    """A decoder of one layer, frozen."""
    inner, heads, shared = WIDTHS[width]
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=16384,
        attn_implementation="mmca",
    )
    torch.manual_seed(0)
    return LlamaModel(config).to(device, dtype).requires_grad_(False)


def contender(layer: LlamaModel, form: str, kinds: torch.Tensor, backward: bool) -> Callable[[int], float]:
    """Times the layer under an attention over rows of `kinds` [B, S]."""
    states = torch.randn(*kinds.shape, layer.config.hidden_size, device=kinds.device, dtype=layer.dtype)
    states.requires_grad_(backward)
    arguments = {} if form == "sdpa" else {"mm_token_type_ids": kinds}

    def work() -> None:
        layer.config._attn_implementation = form
        with torch.set_grad_enabled(backward):
            out = layer(inputs_embeds=states, use_cache=False, **arguments).last_hidden_state
        if backward:
            torch.autograd.grad(out, states, torch.ones_like(out))

    return lambda _: timed(work)


if __name__ == "__main__":
    main()
