"""Fits a linear projection to captions in closed form: `python -m helper.fit_projector` with the flags of training.

A projection that begins at random has to find by gradients alone which directions of the encoder mean which words, and
can end in a poor optimum. Captions say it at once. First the projection is fitted so that a picture's tokens, all
together, are the sum of the embeddings of its caption's words, by ridge regression. Then, in turns, each phrase of a
caption is given to the token that comes nearest to it, and the projection is fitted to show at each token its phrase,
until the phrases stay where they are: expectation-maximisation with hard assignments, as words of two languages are
aligned (Brown et al., "The Mathematics of Statistical Machine Translation", 1993).

Reads conversations of one picture, whose first answer is its caption, and writes a checkpoint in the trained form to
`--output_dir`, for training to begin with: `--init_from`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers.utils.logging import set_verbosity_error

from helper.caption_phrases import best_places, phrases
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
_SETTLED = 1e-3  # of the tokens: when no more of them change their phrase, the alignment is done


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
    """Read, fit and write; returns the share of what the tokens are to say that the projection explains, R2."""
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
    conversations, _ = read_parts(data_arguments, flags.seed, bad_records(data_arguments, output))
    captioned = [each for each in conversations if _is_captioned(each)]
    if len(captioned) < _ROWS_AT_LEAST:
        raise UsageError(
            f"{len(captioned)} of {len(conversations)} conversations are one picture with its caption, of which at"
            f" least {_ROWS_AT_LEAST} are needed: name a dataset of captions, and --dataset_concatenate_samples 1"
        )
    weight, bias, explained = fitted(*_read(model, processor, captioned), flags.ridge, flags.rounds)
    linear = model.model.multi_modal_projector.linear
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    save_trained_only(model, processor, begin_directory(output))
    write_manifest(staging_of(output))
    commit_directory(staging_of(output), output)
    logger.info(
        "fitted to %s captions: R2 %.3f; begin with --init_from %s", f"{len(captioned):,}", explained, output
    )
    return explained


def fitted(
    features: torch.Tensor, said: Sequence[torch.Tensor], ridge: float, rounds: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weight [E, D], bias [E] and R2 of the projection from tokens [N, S, D] to N captions' phrases [phrases, E].

    `ridge` is added to the mean square of each input; after `rounds` the alignment ends, if not before.
    """
    number = features.new_full((len(features), 1), features.shape[1])  # the bias comes with every token
    together = _Sums()
    together.add(torch.cat([features.sum(1), number], 1), torch.stack([each.sum(0) for each in said]))
    solution, explained = together.solved(ridge)
    places = torch.full(features.shape[:2], -1)
    bar = tqdm(range(rounds), desc="aligning phrases", unit="round")
    for _ in bar:
        each_token, moved = _Sums(), 0
        for begin in range(0, len(features), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            rows = F.pad(features[part], (0, 1), value=1.0)  # [n, S, D + 1]
            now = best_places(rows @ solution.float(), said[part])
            moved += int((now != places[part]).sum())
            places[part] = now
            each_token.add(rows.flatten(0, 1), _phrase_of_each(now, said[part]).flatten(0, 1))
        solution, explained = each_token.solved(ridge)
        bar.set_postfix(moved=f"{moved / places.numel():.2%}")
        if moved <= _SETTLED * places.numel():
            break
    bar.close()
    return solution[:-1].T.float(), solution[-1].float(), explained


def _phrase_of_each(places: torch.Tensor, said: Sequence[torch.Tensor]) -> torch.Tensor:
    """The phrases [n, S, E] of tokens that show those at `places` [n, S]; zeros at -1."""
    nothing = said[0].new_zeros(1, said[0].shape[1])
    return torch.stack(
        [torch.cat([words, nothing])[place] for words, place in zip(said, places, strict=True)]
    )


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

    def solved(self, ridge: float) -> tuple[torch.Tensor, float]:
        """The solution [D + 1, E] and R2; `ridge` is added to the mean square of each input."""
        damped = self.inner + ridge * self.rows * torch.eye(len(self.inner), dtype=torch.float64)
        solution = torch.linalg.solve(damped, self.cross)
        left = self.squares - 2 * (solution * self.cross).sum() + (solution * (self.inner @ solution)).sum()
        spread = self.squares - self.mean.square().sum() / self.rows
        return solution, 1 - float(left / spread)


@torch.no_grad()
def _read(
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    pictures: Sequence[Conversation],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The encoder's tokens of the pictures [N, S, D], and of each caption's phrases their words' sum [phrases, E]."""
    embedding = model.get_input_embeddings().weight
    features, said = [], []
    for begin in tqdm(range(0, len(pictures), AT_ONCE), desc="reading captions", unit="batch"):
        part = pictures[begin : begin + AT_ONCE]
        images = [each.turns[0].images[0].open() for each in part]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        features.append(encode(model.model.vision_tower, pixels))
        for each in part:
            texts = [f" {phrase}" for phrase in phrases(each.turns[0].answer)]
            ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
            said.append(torch.stack([embedding[words].sum(0) for words in ids]))
    return torch.cat(features), said


def _is_captioned(conversation: Conversation) -> bool:
    first, *later = conversation.turns
    return len(first.images) == 1 and bool(phrases(first.answer)) and not any(turn.images for turn in later)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m helper.fit_projector", description=__doc__)
    own = parser.add_argument_group("of the fit alone")
    own.add_argument(
        "--ridge", type=float, default=1e-3, help="What keeps the projection small. Default: 0.001."
    )
    own.add_argument(
        "--rounds", type=int, default=20, help="Of giving phrases to tokens, at most; 0: none. Default: 20."
    )
    return read_flags(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
