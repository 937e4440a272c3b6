"""Command line flags that name a checkpoint and how to load it, for the chat and the evaluation alike."""

import argparse
from pathlib import Path

from utils.distributed import get_logger
from utils.model import VisualChatConfig, VisualChatForConditionalGeneration, VisualChatProcessor
from utils.model.checkpoint import load_checkpoint

logger = get_logger(__name__)

PROJECTORS_OF_2023 = {"baseline": "linear"}
"""Names of projectors that changed; the others kept theirs."""


DTYPES = ("auto", "float32", "float16", "bfloat16")


def positive(text: str) -> int:
    """A whole number above 0, as argparse takes it."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of 2023, then those of today."""
    parser.add_argument(
        "--checkpoint_path",
        required=True,
        help="folder of a checkpoint (it brings its own models and processor)",
    )
    parser.add_argument(
        "--max_seq_len", type=positive, default=4096, help="tokens of a dialogue, images included"
    )
    described = parser.add_argument_group(
        "what the checkpoint says itself",
        "needed only where a checkpoint of trained weights finds its base models at another place;"
        " otherwise a contradiction is pointed out and ignored",
    )
    described.add_argument("--lm_model_name_or_path", help="the decoder")
    described.add_argument("--vision_model_name_or_path", help="the visual encoder")
    described.add_argument("--enable_mmca_attention", action="store_true", help="attention mmca")
    described.add_argument(
        "--vis_proj", choices=["baseline", "linear", "vit", "perceiver"], help="the projector"
    )
    parser.add_argument("--device_map", default="auto", help="where the weights go: auto, cpu, cuda:0, ...")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: as saved")


def add_sampling_arguments(parser: argparse.ArgumentParser, seed: int) -> None:
    """How tokens are chosen; greedy unless a temperature is given."""
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the most likely token")
    parser.add_argument("--top_p", type=float, default=1.0, help="only the likeliest tokens of this total")
    parser.add_argument("--top_k", type=int, default=0, help="only this many of the likeliest tokens; 0: all")
    parser.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1: fewer repetitions")
    parser.add_argument("--seed", type=int, default=seed, help="of sampling (default: %(default)s)")


def load_named_checkpoint(
    arguments: argparse.Namespace, folder: str | Path
) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    """The checkpoint in `folder`, loaded as the flags say; those that contradict it are pointed out.

    Raises `CheckpointError` where the folder is not a whole checkpoint.
    """
    bases = {
        "language_model": arguments.lm_model_name_or_path,
        "vision_model": arguments.vision_model_name_or_path,
    }
    model, processor = load_checkpoint(
        folder,
        device_map=arguments.device_map,
        dtype=arguments.dtype,
        base_models={part: path for part, path in bases.items() if path},
    )
    for line in contradictions(arguments, model.config):
        logger.warning("note: %s", line)
    return model, processor


def contradictions(arguments: argparse.Namespace, config: VisualChatConfig) -> list[str]:
    """A line for each flag that says something else than the checkpoint's configuration does."""
    found = []
    if arguments.enable_mmca_attention and config.attention != "mmca":
        found.append(f"--enable_mmca_attention is ignored: the checkpoint's attention is {config.attention}")
    projector = PROJECTORS_OF_2023.get(arguments.vis_proj, arguments.vis_proj)
    if projector and projector != config.projector_type:
        found.append(
            f"--vis_proj {arguments.vis_proj} is ignored: the checkpoint's is {config.projector_type}"
        )
    if config.checkpoint_form == "trained":
        return found  # the flags say where the frozen models are on this machine
    known = config.frozen_from or {}
    for flag, part in [
        ("lm_model_name_or_path", "language_model"),
        ("vision_model_name_or_path", "vision_model"),
    ]:
        asked, base = getattr(arguments, flag), known.get(part)
        if asked and base and Path(asked).name != Path(base).name:
            found.append(f"--{flag} {asked} is ignored: the checkpoint was made with {base}")
    return found
