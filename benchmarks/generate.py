"""Tokens a second while an answer is generated, over a long dialogue with pictures.

    taskset -c 1 python -m benchmarks.generate --size 120m

Contenders, over the same random weights and the same dialogue: ours (text in a cache that grows in place, images
beside it, no mask), causal attention and the dense form of 2023 over transformers' growing cache.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from transformers import DynamicCache

from benchmarks.random_models import IMAGE_TOKENS, add_model_flags, attention, described, model_of, noise
from benchmarks.turns import memory_bandwidth, peak_memory, print_machine, print_ratios, take_turns, timed
from chat.generation import Prompt
from chat.image_kv.store import ImageStore
from chat.images import open_image
from utils.model import VisualChatForConditionalGeneration, VisualChatProcessor


def main() -> None:
    """Print a table for each context."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_flags(parser)
    parser.add_argument(
        "--contexts", type=int, nargs="*", default=[2048, 4096], help="tokens of the dialogue"
    )
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16, help="tokens that each contender generates a round")
    arguments = parser.parse_args()
    model, processor = model_of(arguments)
    print(f"generate: {arguments.tokens} tokens, one at a time; {described(model)}")
    print_machine()
    bandwidth = memory_bandwidth(model.device)
    for context in arguments.contexts:
        steps = Steps(model, processor, context, arguments.images, arguments.tokens)
        contenders: dict[str, Callable[[int], float]] = {"ours": lambda number, steps=steps: steps.beside()}
        for form in ("causal", "dense as in 2023"):
            contenders[form] = lambda number, form=form, steps=steps: steps.together(form)
        print(f" context {context:,}, {arguments.images} images in it: time of a token")
        measured = take_turns(contenders, arguments.rounds)
        print_ratios(measured, "ms", 1000, reference="ours")
        rate = 1 / statistics.median(measured["ours"])
        read = rate * steps.bytes_read()
        print(
            f"  ours: {rate:,.1f} tokens/s, which read {read / 1e9:,.1f} GB of weights, keys and values a second:"
            f" {read / bandwidth:.0%} of what a large copy moves ({bandwidth / 1e9:,.1f} GB)"
        )
    print(f" peak memory {peak_memory()}")


class Steps:
    """A dialogue that has been read, by each contender in its own way."""

    def __init__(
        self,
        model: VisualChatForConditionalGeneration,
        processor: VisualChatProcessor,
        context: int,
        images: int,
        tokens: int,
    ) -> None:
        self._model, self._tokens = model, tokens
        total = context + tokens
        generator = np.random.default_rng(0)
        self._ids = generator.integers(3, 300, total)
        self._is_image = np.zeros(total, bool)
        for start in np.linspace(8, context - IMAGE_TOKENS - 8, images).astype(int):
            self._is_image[start : start + IMAGE_TOKENS] = True
        self._ids[self._is_image] = processor.image_token_id
        self._context = context
        self._images = [open_image(noise(number)) for number in range(images)]
        self._prompt = Prompt(self._ids, self._is_image, tuple(self._images))
        self._reading = ImageStore(model, processor).reading()
        self._reading.read([self._prompt.until(context)])
        self._cache = DynamicCache()
        self._read_together(processor)

    def bytes_read(self) -> int:
        """What each token has to read: the weights, and the keys and values of what stands before it."""
        weights = sum(each.nbytes for each in self._model.model.language_model.layers.parameters())
        kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in self._cache.layers)
        return weights + self._model.lm_head.weight.nbytes + kept

    def beside(self) -> float:
        """Seconds a token, ours."""

        def step(length: int) -> None:
            self._reading.read([self._prompt.until(length)])

        seconds = timed(lambda: [step(self._context + number) for number in range(1, self._tokens + 1)])
        self._reading.cut(self._is_image[: self._context])
        return seconds / self._tokens

    @torch.inference_mode()
    def together(self, form: str) -> float:
        """Seconds a token, everything in one cache; its content is the same whatever the attention."""
        with attention(self._model, form):
            seconds = timed(lambda: [self._step(self._context + number) for number in range(self._tokens)])
        self._cache.crop(-self._tokens)
        return seconds / self._tokens

    def _step(self, place: int) -> None:
        device = self._model.device
        self._model(
            input_ids=torch.from_numpy(self._ids[place : place + 1])[None].to(device),
            attention_mask=torch.ones(1, place + 1, dtype=torch.long, device=device),
            mm_token_type_ids=torch.from_numpy(self._is_image[: place + 1])[None].to(device, torch.long),
            cache=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )

    @torch.inference_mode()
    def _read_together(self, processor: VisualChatProcessor) -> None:
        device = self._model.device
        self._model(
            input_ids=torch.from_numpy(self._ids[: self._context])[None].to(device),
            pixel_values=processor.pixel_values(self._images).to(device, self._model.dtype),
            cache=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )


if __name__ == "__main__":
    main()
