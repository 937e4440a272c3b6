"""Fits a linear projection to captions in closed form: `python -m helper.fit_projector` with the flags of training.

A projection that begins at random has to find by gradients alone which directions of the encoder mean which words, and
can end in a poor optimum. Captions say it at once: the projection is fitted so that a picture's tokens, all together,
are the sum of the embeddings of its caption's words, by ridge regression. A linear map that does so for sums of tokens,
over pictures that differ, does so for each token too.

Reads conversations of one picture, whose first answer is its caption, and writes a checkpoint in the trained form to
`--output_dir`, for training to begin with: `--init_from`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils.logging import set_verbosity_error

from training.arguments import UsageError
from training.command_line import Parser, model_and_data, read_flags
from training.data import bad_records, read_parts
from utils.atomic import begin_directory, commit_directory, staging_of
from utils.conversation import Conversation, ConversationError, ImageError
from utils.data import BadDataError, DataError
from utils.distributed import configure_logging, get_logger
from utils.manifest import write_manifest
from utils.model import VisualChatForConditionalGeneration, VisualChatProcessor, build_visual_chat
from utils.model.checkpoint import save_trained_only
from utils.model.encoding import AT_ONCE, encode

logger = get_logger("helper.fit_projector")

_ROWS_AT_LEAST = 100  # captions, below which nothing can be said of what they have in common


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, write and say how well it fits; returns the exit code."""
    configure_logging()
    set_verbosity_error()
    try:
        fit(_parse(argv))
    except (UsageError, DataError, BadDataError, ConversationError, ImageError, OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def fit(flags: argparse.Namespace) -> float:
    """Read, fit and write; returns the share of the captions' variance that the projection explains, R2."""
    model_arguments, data_arguments = model_and_data(flags)
    if model_arguments.projector != "linear":
        raise UsageError(f"--vis_proj {model_arguments.vis_proj}: only the linear projection can be fitted")
    model, processor = build_visual_chat(
        model_arguments.lm_model_name_or_path,
        model_arguments.vision_model_name_or_path,
        attention=model_arguments.attention_name,
        dtype=torch.float32,
    )
    output = Path(flags.output_dir)
    captions, _ = read_parts(data_arguments, flags.seed, bad_records(data_arguments, output))
    pictures = [each for each in captions if _is_captioned(each)]
    if len(pictures) < _ROWS_AT_LEAST:
        raise UsageError(
            f"{len(pictures)} of {len(captions)} conversations are one picture with its caption, of which at least"
            f" {_ROWS_AT_LEAST} are needed: name a dataset of captions, and --dataset_concatenate_samples 1"
        )
    sums = _Sums()
    for begin in tqdm(range(0, len(pictures), AT_ONCE), desc="reading captions", unit="batch"):
        sums.add(*_read(model, processor, pictures[begin : begin + AT_ONCE]))
    weight, bias, explained = sums.solved(flags.ridge)
    linear = model.model.multi_modal_projector.linear
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    save_trained_only(model, processor, begin_directory(output))
    write_manifest(staging_of(output))
    commit_directory(staging_of(output), output)
    logger.info(
        "fitted to %s captions: R2 %.3f; begin with --init_from %s", f"{len(pictures):,}", explained, output
    )
    return explained


class _Sums:
    """What ridge regression needs of all rows x [D + 1] and targets y [E], whatever their number; in float64."""

    def __init__(self) -> None:
        self.rows, self.inner, self.cross, self.mean, self.squares = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Take in rows [N, D + 1] and targets [N, E]."""
        inputs, targets = inputs.double(), targets.double()
        self.rows += len(inputs)
        self.inner = self.inner + inputs.T @ inputs
        self.cross = self.cross + inputs.T @ targets
        self.mean = self.mean + targets.sum(0)
        self.squares += float(targets.square().sum())

    def solved(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Weight [E, D], bias [E] and R2; `ridge` is added to the mean square of each input."""
        damped = self.inner + ridge * self.rows * torch.eye(len(self.inner), dtype=torch.float64)
        solution = torch.linalg.solve(damped, self.cross)  # [D + 1, E]
        left = self.squares - 2 * (solution * self.cross).sum() + (solution * (self.inner @ solution)).sum()
        spread = self.squares - self.mean.square().sum() / self.rows
        return solution[:-1].T.float(), solution[-1].float(), 1 - float(left / spread)


@torch.no_grad()
def _read(
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    pictures: Sequence[Conversation],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the encoder's tokens with their number [N, D + 1], and of the captions' embeddings [N, E]."""
    images = [each.turns[0].images[0].open() for each in pictures]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    features = encode(model.model.vision_tower, pixels)  # [N, S, D]
    number = features.new_full((len(features), 1), features.shape[1])  # the bias comes with every token
    embedding = model.get_input_embeddings().weight
    words = [
        processor.tokenizer(f" {each.turns[0].answer.strip()}", add_special_tokens=False)["input_ids"]
        for each in pictures
    ]
    return torch.cat([features.sum(1), number], 1), torch.stack([embedding[ids].sum(0) for ids in words])


def _is_captioned(conversation: Conversation) -> bool:
    first, *later = conversation.turns
    return len(first.images) == 1 and bool(first.answer) and not any(turn.images for turn in later)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m helper.fit_projector", description=__doc__)
    own = parser.add_argument_group("of the fit alone")
    own.add_argument(
        "--ridge", type=float, default=1e-3, help="What keeps the projection small. Default: 0.001."
    )
    return read_flags(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
