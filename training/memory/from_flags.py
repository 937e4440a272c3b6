"""The training that a command line describes, as the memory plan takes it; nothing of it has to exist here."""

import argparse

import torch

from training.ds_configs import AUTO, Offload, zero_config
from training.ds_configs.own_config import read_own_config
from training.memory.batch import BatchShape, largest_batches
from training.memory.named_models import decoder_config, encoder_config
from training.memory.plan import Training
from training.memory.states import Sharding
from utils.commands import UsageError
from utils.model import VisualChatConfig
from utils.model.freezing import PUBLISHED, check_parts
from utils.model.lora import LoraSettings
from utils.model.projector import image_seq_length

_DTYPES = {"auto": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def training_of(flags: argparse.Namespace, gpus: int, supervised: float = 1.0) -> Training:
    """The training of the flags of `training.main`, on so many GPUs.

    supervised: the share of a row's text that is learned. `--precision auto` is taken for bf16. Raises
    `UsageError` where a model's shapes are not known, or where nothing learns.
    """
    decoder, encoder = (
        decoder_config(flags.lm_model_name_or_path),
        encoder_config(flags.vision_model_name_or_path),
    )
    placeholders = 1 + (flags.image_summary == "mean")
    decoder.vocab_size += placeholders  # models that have room for them need fewer rows than foretold
    projector = "linear" if flags.vis_proj == "baseline" else flags.vis_proj
    config = VisualChatConfig(
        text_config=decoder,
        vision_config=encoder,
        projector_type=projector,
        attention=flags.attention or ("mmca" if flags.enable_mmca_attention else "causal"),
        image_layers=flags.image_layers or "full",
        image_gate=flags.image_gate or "none",
        image_token_id=decoder.vocab_size - 1,
        image_seq_length=image_seq_length(projector, encoder),
    )
    lora = LoraSettings(
        lang_dim=flags.lang_lora_dim,
        lang_module_name=flags.lang_lora_module_name,
        vis_dim=flags.vis_lora_dim,
        vis_module_name=flags.vis_lora_module_name,
    )
    try:
        check_parts(flags.train, decoder.num_hidden_layers)
    except ValueError as error:
        raise UsageError(f"--train: {error}") from error
    return Training(
        config=config,
        dtype=_DTYPES["fp16" if flags.fp16 else flags.precision],
        batches=batches_of(flags, config.image_seq_length, supervised),
        sharding=Sharding.of(_deepspeed(flags, decoder.hidden_size), gpus),
        lora=lora or None,
        gradient_checkpointing=_recomputes(flags),
        accumulation=flags.gradient_accumulation_steps,
        train=tuple(flags.train or PUBLISHED),
    )


def batches_of(
    flags: argparse.Namespace, tokens_per_image: int, supervised: float = 1.0
) -> tuple[BatchShape, ...]:
    """The largest batches that the data's flags allow (`largest_batches`)."""
    most = flags.max_num_image_per_sample
    if flags.packing:
        most = flags.max_images_per_row or 2 * most
    if tokens_per_image >= flags.max_seq_len:
        raise UsageError(
            f"--max_seq_len {flags.max_seq_len} has no room for an image of {tokens_per_image} tokens: raise it"
        )
    return largest_batches(
        flags.per_device_train_batch_size,
        flags.max_seq_len,
        most,
        tokens_per_image,
        supervised,
        packed=bool(flags.packing),
    )


def _recomputes(flags: argparse.Namespace) -> bool:
    newer = getattr(flags, "activation_checkpointing", None)  # newer transformers' name, which comes first
    return bool(flags.gradient_checkpointing if newer is None else newer)


def _deepspeed(flags: argparse.Namespace, width: int) -> dict:
    """The configuration, "auto" replaced by what transformers makes of it for a decoder of that width."""
    own = flags.deepspeed_config or flags.deepspeed
    if own:
        zero = read_own_config(own).get("zero_optimization", {})
        automatic = {"reduce_bucket_size": width**2, "stage3_param_persistence_threshold": 10 * width}
        zero = {name: automatic.get(name) if value == AUTO else value for name, value in zero.items()}
        return {"zero_optimization": {name: value for name, value in zero.items() if value is not None}}
    return zero_config(
        flags.zero_stage,
        flags.stage3_param_persistence_threshold,
        flags.stage3_max_live_parameters,
        Offload(flags.offload_optimizer, flags.offload_param, flags.nvme_path),
    )
