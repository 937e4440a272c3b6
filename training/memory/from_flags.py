"""The training that a command line describes, as the memory plan takes it; nothing of it has to exist here."""

import argparse

import torch

from training.arguments import ModelArguments
from training.arguments.command_line import arguments_of
from training.arguments.model_and_data import images_per_row
from training.memory.named_models import decoder_config, encoder_config
from training.memory.plan import Training
from training.memory.states import Sharding
from training.memory.trace import BatchShape, largest_batches
from training.sharding import AUTO, check_shard_within, config_of_flags
from training.user_config import read_user_config
from utils.commands import UsageError
from utils.model import VisualChatConfig
from utils.model.lora import PUBLISHED, check_parts
from utils.model.projector import image_seq_length
from utils.model.quantised import encoder_matrices

_DTYPES = {"auto": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def training_of(
    flags: argparse.Namespace, gpus: int, supervised: float = 1.0, node: int | None = None
) -> Training:
    """The training of the flags of `training.main`, on so many GPUs, of which `node` stand in each node.

    supervised: the share of a row's text that is learned. `--precision auto` is taken for bf16. Raises
    `UsageError` where a model's shapes are not known, or where nothing learns.
    """
    decoder, encoder = (
        decoder_config(flags.lm_model_name_or_path),
        encoder_config(flags.vision_model_name_or_path),
    )
    model = arguments_of(ModelArguments, flags)
    placeholders = 1 + (model.summary == "mean")
    decoder.vocab_size += placeholders  # models that have room for them need fewer rows than foretold
    config = VisualChatConfig(
        text_config=decoder,
        vision_config=encoder,
        projector_type=model.projector,
        attention=model.attention_name,
        image_layers=model.images_go_through,
        image_gate=model.gate,
        image_token_id=decoder.vocab_size - 1,
        image_seq_length=image_seq_length(model.projector, encoder),
    )
    try:
        check_parts(flags.train, decoder.num_hidden_layers)
    except ValueError as error:
        raise UsageError(f"--train: {error}") from error
    if model.quantised.encoder:
        try:
            encoder_matrices(encoder)
        except ValueError as error:
            raise UsageError(str(error)) from error
    deepspeed = _deepspeed(flags, decoder.hidden_size)
    check_shard_within(flags.shard_within, deepspeed)
    sharding = Sharding.of(deepspeed, gpus, flags.shard_within, node)
    model.require_whole(sharding.stage)
    return Training(
        config=config,
        dtype=_DTYPES["fp16" if flags.fp16 else flags.precision],
        batches=batches_of(flags, config.image_seq_length, supervised),
        sharding=sharding,
        lora=model.lora,
        gradient_checkpointing=_recomputes(flags),
        accumulation=flags.gradient_accumulation_steps,
        train=tuple(flags.train or PUBLISHED),
        frozen_bits=model.quantised,
        save_in_background=bool(flags.save_in_background),
        checkpoint_form="trained" if model.quantised else flags.epoch_checkpoint_form,
        save_only_model=bool(flags.save_only_model),
    )


def batches_of(
    flags: argparse.Namespace, tokens_per_image: int, supervised: float = 1.0
) -> tuple[BatchShape, ...]:
    """The largest batches that the data's flags allow (`largest_batches`)."""
    if tokens_per_image >= flags.max_seq_len:
        raise UsageError(
            f"--max_seq_len {flags.max_seq_len} has no room for an image of {tokens_per_image} tokens: raise it"
        )
    return largest_batches(
        flags.per_device_train_batch_size,
        flags.max_seq_len,
        images_per_row(flags),
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
        zero = read_user_config(own).get("zero_optimization", {})
        automatic = {"reduce_bucket_size": width**2, "stage3_param_persistence_threshold": 10 * width}
        zero = {name: automatic.get(name) if value == AUTO else value for name, value in zero.items()}
        return {"zero_optimization": {name: value for name, value in zero.items() if value is not None}}
    return config_of_flags(flags)
