"""Command line flags that chat, page, server and evaluation share, and what is made of them.

Which checkpoint and how it is loaded, how tokens are chosen, how much the image KV cache may keep.
"""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chat.limits import MAX_IMAGES, MAX_NEW_TOKENS, MAX_SEQ_LEN, StoreLimits
from utils.commands import GIB, UsageError, writable_folder
from utils.hub import checkpoint_folder, read_config, require_model
from utils.plugins import add_plugin_argument

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel
    from transformers.processing_utils import ProcessorMixin

    from chat.generation import Sampling
    from chat.session import ChatSession
    from utils.model import VisualChatConfig, VisualChatForConditionalGeneration, VisualChatProcessor

logger = logging.getLogger(__name__)

PROJECTORS_OF_2023 = {"baseline": "linear"}
"""Names of projectors that changed; the others kept theirs."""

_BASE_FLAGS = {"language_model": "lm_model_name_or_path", "vision_model": "vision_model_name_or_path"}

DTYPES = ("auto", "float32", "float16", "bfloat16")


def positive(text: str) -> int:
    """A whole number above 0, as argparse takes it."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def device_memory(text: str) -> tuple[int | str, str]:
    """`0=20GiB` as the device and its size, as argparse takes it."""
    device, equals, size = text.partition("=")
    if not equals or not re.fullmatch(r"(?i)\d+(\.\d+)?\s*[kmgt]i?b", size):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0=20GiB or cpu=60GiB")
    return (int(device) if device.isdigit() else device), size


def quantisation(arguments: argparse.Namespace) -> BitsAndBytesConfig | None:
    """What --load_in_8bit and --load_in_4bit ask for; encoder, projector and head keep their precision."""
    if not (arguments.load_in_8bit or arguments.load_in_4bit):
        return None
    import torch

    from utils.model.quantised import bitsandbytes_config

    whole = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
    return bitsandbytes_config(4 if arguments.load_in_4bit else 8, torch.bfloat16, whole)


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of 2023, then those of today."""
    parser.add_argument(
        "--checkpoint_path",
        required=True,
        help="a checkpoint: its folder, the folder of a run (its best, else its final), or a name on the hub",
    )
    add_plugin_argument(parser)
    parser.add_argument(
        "--max_seq_len",
        type=positive,
        default=MAX_SEQ_LEN,
        help="maximum length of a dialogue in tokens, image tokens included (default: %(default)s)",
    )
    described = parser.add_argument_group(
        "base models",
        "The checkpoint names them itself. Needed only if it has trained weights alone and its base models have moved;"
        " a value that contradicts the checkpoint is reported and ignored.",
    )
    described.add_argument("--lm_model_name_or_path", help="folder or hub name of the decoder")
    described.add_argument("--vision_model_name_or_path", help="folder or hub name of the visual encoder")
    described.add_argument("--enable_mmca_attention", action="store_true", help="use the attention mmca")
    described.add_argument(
        "--vis_proj", choices=["baseline", "linear", "vit", "perceiver"], help="the projection"
    )
    parser.add_argument(
        "--device_map", default="auto", help="devices for the weights: auto (default), cpu, cuda:0, ..."
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="number type of the weights; auto (default): as saved"
    )
    parser.add_argument(
        "--max_memory",
        nargs="+",
        type=device_memory,
        metavar="DEVICE=SIZE",
        help="memory limit of each device, with --device_map auto: 0=20GiB 1=20GiB cpu=60GiB",
    )
    bits = parser.add_mutually_exclusive_group()
    bits.add_argument("--load_in_8bit", action="store_true", help="load the decoder in 8 bits (bitsandbytes)")
    bits.add_argument(
        "--load_in_4bit", action="store_true", help="load the decoder in 4 bits (bitsandbytes, nf4)"
    )


def add_sampling_arguments(parser: argparse._ActionsContainer, seed: int | None) -> None:
    """How tokens are chosen; greedy unless a temperature is given. `seed` None: it is no flag."""
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="sampling temperature; 0 (default): greedy"
    )
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        help="sample from the most likely tokens whose probabilities sum to this (default: %(default)s)",
    )
    parser.add_argument(
        "--top_k", type=int, default=0, help="sample from this many most likely tokens; 0 (default): from all"
    )
    parser.add_argument(
        "--repetition_penalty",
        type=float,
        default=1.0,
        help="above 1: fewer repetitions (default: %(default)s)",
    )
    if seed is not None:
        parser.add_argument(
            "--seed", type=int, default=seed, help="random seed of sampling (default: %(default)s)"
        )


def sampling_of(parsed: argparse.Namespace) -> Sampling:
    """How tokens are chosen. Raises `SamplingError` for a value that makes no sense."""
    from chat.generation import Sampling

    seed = {"seed": parsed.seed} if "seed" in parsed else {}
    return Sampling(parsed.temperature, parsed.top_p, parsed.top_k, parsed.repetition_penalty, **seed)


def add_answer_arguments(parser: argparse._ActionsContainer, seed: int | None) -> None:
    """How long an answer may be, and how its tokens are chosen."""
    parser.add_argument(
        "--generation_length_per_round",
        type=positive,
        default=MAX_NEW_TOKENS,
        help="maximum length of an answer in tokens (default: %(default)s)",
    )
    add_sampling_arguments(parser, seed)


def add_max_images(parser: argparse._ActionsContainer) -> None:
    """How many images a dialogue may have."""
    parser.add_argument(
        "--max_images",
        type=positive,
        default=MAX_IMAGES,
        help="maximum number of images in a dialogue (default: %(default)s)",
    )


def add_image_store_arguments(parser: argparse.ArgumentParser) -> None:
    """How much of the image KV cache is kept, and where."""
    group = parser.add_argument_group(
        "image KV cache",
        "Keeps each image's keys and values, so that later questions need not compute them again. Attention mmca only;"
        " an image of 256 tokens takes 134 MB with a 7B decoder.",
    )
    group.add_argument(
        "--image_store_folder", type=Path, help="folder that keeps them for later runs too (default: none)"
    )
    for flag, place, size in (
        ("--image_store_gpu_gb", "on the GPUs", StoreLimits.device),
        ("--image_store_gb", "in main memory", StoreLimits.memory),
        ("--image_store_folder_gb", "in that folder", StoreLimits.disk),
    ):
        group.add_argument(
            flag, type=_size, default=size / GIB, help=f"limit {place} in GiB (default: %(default)g)"
        )
    group.add_argument(
        "--no_image_store", action="store_true", help="keep nothing: compute images again where they return"
    )


def _size(text: str) -> float:
    size = float(text)
    if size < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return size


def store_settings(
    parsed: argparse.Namespace, model: PreTrainedModel, processor: ProcessorMixin
) -> dict[str, Any]:
    """What a session and an evaluation take of the image KV cache that the flags ask for, if the model allows one."""
    if parsed.no_image_store:
        return {"image_store": None, "keep_images": False}
    from chat.generation import store_if_possible

    if parsed.image_store_folder:
        writable_folder(parsed.image_store_folder, "--image_store_folder")
    limits = StoreLimits(
        device=int(parsed.image_store_gpu_gb * GIB),
        memory=int(parsed.image_store_gb * GIB),
        folder=parsed.image_store_folder,
        disk=int(parsed.image_store_folder_gb * GIB),
    )
    store = store_if_possible(model, processor, parsed.max_seq_len, limits)
    return {"image_store": store, "keep_images": store is not None}


def load_session(parsed: argparse.Namespace, **settings: Any) -> ChatSession:
    """A session over the checkpoint that the command line names, with its image store; `settings` are the session's.

    Raises `UsageError` if it cannot be loaded.
    """
    from chat.session import ChatSession

    model, processor = load_named_checkpoint(parsed, parsed.checkpoint_path)
    return ChatSession(
        model,
        processor,
        max_images=parsed.max_images,
        max_seq_len=parsed.max_seq_len,
        **store_settings(parsed, model, processor),
        **settings,
    )


def load_named_checkpoint(
    arguments: argparse.Namespace, folder: str | Path
) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    """The checkpoint at `folder` (see `utils.hub`), loaded as the flags say; those that contradict it are pointed out.

    Raises `UsageError` where that is not a whole checkpoint, or a base model that a flag names is not there.
    """
    found = checkpoint_folder(folder)
    if found != Path(folder):
        logger.warning("note: the checkpoint is %s", found)
    bases = base_models(arguments, found)
    from utils.model import CheckpointError
    from utils.model.checkpoint import load_checkpoint

    try:
        model, processor = load_checkpoint(
            found,
            device_map=arguments.device_map,
            dtype=arguments.dtype,
            base_models=bases,
            **_placement(arguments),
        )
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    for line in contradictions(arguments, model.config):
        logger.warning("note: %s", line)
    return model, processor


def base_models(arguments: argparse.Namespace, folder: Path) -> dict[str, str]:
    """The base models that the flags name, by their part of the checkpoint in `folder`.

    Raises `UsageError` where the checkpoint needs one (it holds trained weights only) that is not there.
    """
    named = {part: path for part, flag in _BASE_FLAGS.items() if (path := getattr(arguments, flag))}
    config = read_config(folder)
    if config.get("checkpoint_form") != "trained":
        return named
    for part, flag in _BASE_FLAGS.items():
        path = named.get(part)
        known = (config.get("frozen_from") or {}).get(part) or ""
        if path is None and Path(known).is_absolute() and not Path(known).exists():
            raise UsageError(
                f"{folder} holds trained weights only, and its base model {known} is not there: say with --{flag} where"
                " it is now"
            )
        given = f"--{flag}" if path else f"{folder} holds trained weights only; its base model"
        path = path or known
        if path and (part == "language_model" or not _is_of_open_clip(path)):
            require_model(given, path)
    return named


def _is_of_open_clip(name: str) -> bool:
    from utils.model.pretrained_encoders import OPEN_CLIP_CONFIG, PREFIXES, is_architecture

    return name.startswith(PREFIXES) or is_architecture(name) or Path(name, OPEN_CLIP_CONFIG).is_file()


def _placement(arguments: argparse.Namespace) -> dict[str, Any]:
    """What goes to `from_pretrained` only where it was asked for."""
    placement: dict[str, Any] = {}
    if arguments.max_memory:
        placement["max_memory"] = dict(arguments.max_memory)
    if (quantised := quantisation(arguments)) is not None:
        placement["quantization_config"] = quantised
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every cast of every layer
    return placement


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
    for part, flag in _BASE_FLAGS.items():
        asked, base = getattr(arguments, flag), known.get(part)
        if asked and base and Path(asked).name != Path(base).name:
            found.append(f"--{flag} {asked} is ignored: the checkpoint was made with {base}")
    return found
