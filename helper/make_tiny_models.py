"""Trains the weights of the two small models in assets/ anew: `python -m helper.make_tiny_models --output assets`.

`tiny_llama` learns dialogues in words as language models do, `tiny_clip` learns images and their captions as CLIP did,
in some minutes. They serve formats and speed of tests, not accuracy. Configurations, tokenizers and the image processor
are those in assets/.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from helper.miniature.album import THINGS, Album, caption
from utils.commands import Parser, command, end_process, writable_folder

if TYPE_CHECKING:
    import torch

ASSETS = Path(__file__).resolve().parent.parent / "assets"


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m helper.make_tiny_models", description=__doc__)
    parser.add_argument("--output", type=Path, default=ASSETS, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=300, help="of each model (default: %(default)s)")
    arguments = parser.parse_args(argv)
    writable_folder(arguments.output, "--output")
    for make, name in ((_make_encoder, "tiny_clip"), (_make_decoder, "tiny_llama")):
        folder = arguments.output / name
        if folder.resolve() != ASSETS / name:
            shutil.copytree(ASSETS / name, folder, dirs_exist_ok=True)
        make(folder, arguments.steps, arguments.seed)


def _make_decoder(folder: Path, steps: int, seed: int) -> None:
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer, config = AutoTokenizer.from_pretrained(folder), LlamaConfig.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    album = Album([seed])
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.generation_config = generation

    def loss() -> torch.Tensor:
        texts = [_dialogue_in_words(album) for _ in range(16)]
        rows = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        # Padded on the right, where causal attention needs no mask for it.
        labels = pad_sequence(rows, batch_first=True, padding_value=-100)
        return model(input_ids=labels.clamp(min=0), labels=labels, use_cache=False).loss

    _train(model, loss, steps, folder.name)
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}  # as LLaMA-2's own files
    model.save_pretrained(folder, state_dict=half)


def _dialogue_in_words(album: Album) -> str:
    """A dialogue in training's template, in which captions stand in the place of images."""
    from utils.model.rendering import DEFAULT_SYSTEM

    things = [album.thing() for _ in range(album.rng.integers(1, 4))]
    text, shown = f"<s>{DEFAULT_SYSTEM}", 0
    for turn in album.dialogue(things, rounds=4):
        text += "\n\n"
        for thing in turn.new:
            shown += 1
            text += f"### Image {shown}: {caption(thing)}\n"
        text += f"### Question: {turn.question}\n### Answer: {turn.answer}</s>"
    return text


def _make_encoder(folder: Path, steps: int, seed: int) -> None:
    import torch
    import torch.nn.functional as F
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer, processor = AutoTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    album = Album([seed])
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig.from_pretrained(folder)).float()
    captions = tokenizer([caption(thing) for thing in THINGS], padding=True, return_tensors="pt")
    words = {name: captions[name] for name in ("input_ids", "attention_mask")}

    def loss() -> torch.Tensor:
        images = processor([album.image(thing) for thing in THINGS], return_tensors="pt")
        scores = model(pixel_values=images["pixel_values"], **words).logits_per_image
        own = torch.arange(len(scores))
        return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2

    _train(model, loss, steps, folder.name)
    model.half().save_pretrained(folder)


def _train(
    model: torch.nn.Module, loss_of_a_batch: Callable[[], torch.Tensor], steps: int, name: str
) -> None:
    import torch
    from tqdm import trange

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    bar = trange(steps, desc=name)
    for _ in bar:
        loss = loss_of_a_batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


if __name__ == "__main__":
    end_process(main())
