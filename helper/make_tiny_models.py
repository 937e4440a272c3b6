"""Makes the miniature world's two pretrained models, which stand for the downloads of the real job.

    python -m helper.make_tiny_models --output assets [--only decoder|encoder] [--seed 0]

writes `tiny_llama` (a LLaMA with its sentencepiece tokenizer, pretrained on dialogues in words) and `tiny_clip` (a CLIP
pretrained on pictures against captions) as ordinary Hugging Face folders, each with the log of its making.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.commands import Parser, command, end_process, writable_folder

if TYPE_CHECKING:
    import torch

    from helper.miniature.decoder import DecoderRecipe
    from helper.miniature.encoder import EncoderRecipe


def make_decoder(
    folder: Path, recipe: DecoderRecipe, seed: int, log: Callable[[str], None], first_lesson: int = 1
) -> None:
    """Trains tokenizer and decoder into `folder`, or from `first_lesson` on goes on with what is there.

    It is saved with every line of its log.
    """
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    from helper.miniature.decoder import pretrain_decoder
    from helper.miniature.tokenizer import train_tokenizer

    stored_dtype = torch.float16  # as LLaMA-2's own files; half the size in the repository
    decoder = None
    if first_lesson > 1:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        decoder = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(folder, seed)
        tokenizer.save_pretrained(folder)

    def save(decoder: torch.nn.Module) -> None:
        decoder.generation_config.do_sample = False
        state = {name: tensor.to(stored_dtype) for name, tensor in decoder.state_dict().items()}
        decoder.config.dtype = stored_dtype
        decoder.save_pretrained(folder, state_dict=state)

    _, accuracy = pretrain_decoder(recipe, tokenizer, seed, log, save, decoder, first_lesson)
    log(f"accuracy on held-out scenes in words: {accuracy}")


def make_encoder(folder: Path, recipe: EncoderRecipe, seed: int, log: Callable[[str], None]) -> None:
    """Trains the CLIP into `folder`, with its image processor and caption tokenizer."""
    import torch

    from helper.miniature.encoder import caption_tokenizer, picture_processor, pretrain_encoder

    model, accuracy = pretrain_encoder(recipe, seed, log)
    model.to(torch.float16).save_pretrained(folder)
    picture_processor().save_pretrained(folder)
    caption_tokenizer().save_pretrained(folder)
    log(f"own caption picked among four that differ in one detail, held-out scenes: {accuracy:.3f}")


@command
def main(argv: list[str] | None = None) -> None:
    arguments = _parse(argv)
    writable_folder(arguments.output, "--output")
    import torch

    from helper.miniature.decoder import DecoderRecipe
    from helper.miniature.encoder import EncoderRecipe

    if argv is None:  # the program: small gradients slow a CPU down, and this holds for the whole process
        torch.set_flush_denormal(True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    changes = {"steps": arguments.steps} if arguments.steps else {}
    if arguments.only in (None, "encoder"):
        folder = arguments.output / "tiny_clip"
        log = _log_to(folder / "pretraining.log")
        make_encoder(folder, replace(EncoderRecipe(), **changes), arguments.seed, log)
    if arguments.only in (None, "decoder"):
        folder = arguments.output / "tiny_llama"
        log = _log_to(folder / "pretraining.log", append=arguments.first_lesson > 1)
        recipe = _shortened(DecoderRecipe(), arguments.steps)
        make_decoder(folder, recipe, arguments.seed, log, arguments.first_lesson)


def _shortened(recipe: DecoderRecipe, steps: int | None) -> DecoderRecipe:
    """The recipe with at most `steps` steps a lesson."""
    if steps is None:
        return recipe
    return replace(
        recipe, lessons=tuple(replace(each, steps=min(each.steps, steps)) for each in recipe.lessons)
    )


def _log_to(path: Path, append: bool = False) -> Callable[[str], None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w") as stream:
        stream.write(f"# {' '.join(['python -m helper.make_tiny_models', *sys.argv[1:]])}\n")

    def log(line: str) -> None:
        print(line, flush=True)
        with path.open("a") as stream:
            stream.write(line + "\n")

    return log


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("assets"), help="folder for tiny_llama and tiny_clip"
    )
    parser.add_argument("--only", choices=("decoder", "encoder"), help="make one of the two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=int, help="steps of the encoder, and of a lesson of the decoder at most"
    )
    parser.add_argument(
        "--first_lesson", type=int, default=1, help="go on with the decoder in --output from here"
    )
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's choice)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    end_process(main())
