"""A training step (forward and backward; embedding and projection learn, the rest is frozen), and what it keeps.

    taskset -c 1 python -m benchmarks.train_step --size 120m

Contenders, over the same random weights and the same packed row: ours, with each `image_layers`; causal attention; both
with rows and logits that nobody reads; and the form of 2023 with logits of all tokens. On a GPU the share of the
device's peak is printed too, by the formula of docs/training.md. `--cached`: the encoder's features are read, as with
`--cache_vision_features`; otherwise each step encodes its images.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from benchmarks.layouts import between
from benchmarks.random_models import DECODERS, IMAGE_TOKENS, SIDE, attention, described, random_model
from benchmarks.turns import add_run_flags, peak_memory, print_machine, print_ratios, take_turns, timed
from training.metrics.mfu import StepFlops, peak_flops, visible_pairs
from utils.model import VisualChatForConditionalGeneration, freeze


def main() -> None:
    """Print the table."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=DECODERS, default="7b" if on_gpu else "120m")
    parser.add_argument("--text", type=int, default=2048 if on_gpu else 1024)
    parser.add_argument("--images", type=int, default=8 if on_gpu else 4)
    parser.add_argument("--supervised", type=float, default=0.25, help="share of the text tokens")
    add_run_flags(parser, 10 if on_gpu else 5, "bfloat16" if on_gpu else "float32")
    parser.add_argument("--cached", action="store_true", help="the encoder's features are kept")
    parser.add_argument(
        "--short", action="store_true", help="leave out the form of 2023 and what computes all rows"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, _ = random_model(arguments.size, getattr(torch, arguments.dtype), arguments.device)
    freeze(model)
    model.train()
    step = Step(model, arguments.text, arguments.images, arguments.supervised, cached=arguments.cached)
    contenders: dict[str, Callable[[], None]] = {
        form: lambda form=form: step.run(form)
        for form in ("ours", "ours, images without MLPs", "ours, images in no layer", "causal")
    }
    if not arguments.short:
        contenders["ours, all rows"] = lambda: step.run_all_rows("ours")
        contenders["causal, all rows"] = lambda: step.run_all_rows("causal")
        contenders["as in 2023"] = lambda: step.run_all_rows("dense as in 2023")
    print(
        f"training step, {arguments.text} + {arguments.images}, {step.supervised} supervised tokens;"
        f" {described(model)}"
    )
    print_machine()
    measured = take_turns(
        {name: (lambda _, work=work: timed(work)) for name, work in contenders.items()}, arguments.rounds
    )
    print_ratios(measured, "ms", 1000, reference="causal")
    seconds = statistics.median(measured["ours"])
    operations = step.operations()
    print(
        f"  ours: {step.tokens / seconds:,.0f} tokens/s, {operations / seconds / 1e12:.2f} useful TFLOP/s",
        end="",
    )
    peak = peak_flops(torch.cuda.get_device_name()) if on_gpu else None
    print(f", MFU {operations / seconds / peak:.1%}" if peak else "")
    for name in measured:
        print(f"  kept for the backward pass by {name}: {step.kept(contenders[name]) / 1e6:,.0f} MB")
    print(f"  peak memory of all: {peak_memory()}")


class Step:
    """One row of text and images, of which a share of the text is learned.

    conversations: of equal length, packed into the row. inputs, labels: the model's arguments.
    """

    def __init__(
        self,
        model: VisualChatForConditionalGeneration,
        text: int,
        images: int,
        supervised: float,
        conversations: int = 1,
        seed: int = 0,
        cached: bool = False,
    ) -> None:
        """cached: the encoder's features are given in place of pixel_values."""
        self._model = model
        spans = between(text // conversations, images // conversations, IMAGE_TOKENS) * conversations
        kinds = [kind for length, image in spans for kind in [int(image)] * length]
        kinds = torch.tensor([kinds])
        generator = torch.Generator().manual_seed(seed)  # of the CPU: the same batch on every device
        words = torch.randint(3, 1000, kinds.shape, generator=generator)
        words = torch.where(words == model.config.image_token_id, 3, words)
        ids = torch.where(kinds == 1, model.config.image_token_id, words)
        learned = (torch.rand(kinds.shape, generator=generator) < supervised) & (kinds == 0)
        positions = torch.arange(kinds.shape[1]) % (kinds.shape[1] // conversations)
        tensors = {
            "input_ids": ids,
            "mm_token_type_ids": kinds,
            "position_ids": positions[None],
        }
        self.inputs = {name: each.to(model.device) for name, each in tensors.items()}
        shape = (IMAGE_TOKENS, model.config.vision_config.hidden_size) if cached else (3, SIDE, SIDE)
        seen = torch.randn(images, *shape, generator=generator).to(model.device, model.dtype)
        if cached:
            self.inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(last_hidden_state=seen)}
        else:
            self.inputs["pixel_values"] = seen
        self.inputs |= {"image_tokens": int(kinds.sum()), "supervised_tokens": int(learned[:, 1:].sum())}
        self.labels = torch.where(learned, ids, -100).to(model.device)
        self.tokens, self.supervised, self._images = kinds.numel(), int(learned.sum()), images

    def run(self, form: str) -> None:
        """The model's own loss."""
        with attention(self._model, form):
            self._model(**self.inputs, labels=self.labels).loss.backward()
        self._model.zero_grad()

    def run_all_rows(self, form: str) -> None:
        """The loss over the logits of all rows."""
        with attention(self._model, form):
            logits = self._model(**self.inputs, use_cache=False).logits
            F.cross_entropy(logits[0, :-1].float(), self.labels[0, 1:]).backward()
        self._model.zero_grad()

    def operations(self) -> float:
        """Useful operations of a step, by the formula of docs/training.md."""
        kinds, labels = self.inputs["mm_token_type_ids"], self.labels
        positions = self.inputs["position_ids"]
        pairs = visible_pairs("mmca", positions, kinds, torch.ones_like(kinds).bool())
        supervised, image_tokens = int((labels != -100).sum()), int(kinds.sum())
        return StepFlops.of(self._model).total(
            self.tokens, float(pairs), self._images, supervised, image_tokens
        )

    def kept(self, work: Callable[[], None]) -> int:
        """Bytes of activations, weights aside."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self._model.parameters()}
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            work()
        return sum(sizes.values())


if __name__ == "__main__":
    main()
