"""Fits a projection to the captions of the training datasets; `helper.fit_projector` is the command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from helper.caption_alignment import fitted, phrases
from training.command_line import model_and_data
from training.data import bad_records, read_parts
from utils.atomic import begin_directory, commit_directory, staging_of
from utils.commands import UsageError, writable_folder
from utils.conversation import Conversation
from utils.distributed import get_logger
from utils.manifest import write_manifest
from utils.model import VisualChatForConditionalGeneration, VisualChatProcessor, build_visual_chat
from utils.model.checkpoint import save_trained_only
from utils.model.encoding import AT_ONCE, encode

logger = get_logger(__name__)

_ROWS_AT_LEAST = 100  # captions, below which nothing can be said of what they have in common


def fit(flags: argparse.Namespace) -> float:
    """Read, fit and write; returns the share of what the tokens are to say that the projection explains, R2."""
    model_arguments, data_arguments = model_and_data(flags)
    if model_arguments.projector != "linear":
        raise UsageError(f"--vis_proj {model_arguments.vis_proj}: only the linear projection can be fitted")
    output = Path(flags.output_dir)
    writable_folder(output.parent, "--output_dir")
    model_arguments.look_up()
    model, processor = build_visual_chat(
        model_arguments.lm_model_name_or_path,
        model_arguments.vision_model_name_or_path,
        attention=model_arguments.attention_name,
        dtype=torch.float32,
    )
    conversations, _ = read_parts(data_arguments, flags.seed, bad_records(data_arguments, output))
    captioned = [each for each in conversations if _is_captioned(each)]
    if len(captioned) < _ROWS_AT_LEAST:
        raise UsageError(
            f"{len(captioned)} of {len(conversations)} conversations are one image with its caption; at"
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
