"""A pretrained decoder, made ready to be joined: its own head, and room for the image token."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

logger = logging.getLogger(__name__)

_OUTPUT_SCALES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def load_decoder(path: str, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """A causal language model whose head is a tensor of its own, from a folder or hub name.

    Raises `ValueError` where weights are missing, or where the model does to its logits what we do not.
    """
    model, report = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"{path} lacks weights of the decoder: {', '.join(sorted(report['missing_keys']))}")
    unusual = [name for name in _OUTPUT_SCALES if getattr(model.config, name, None) not in (None, 1, 1.0)]
    if model.get_output_embeddings().bias is not None:
        unusual.append("a bias in the head")
    if unusual:
        raise ValueError(f"{path} changes its logits by {', '.join(unusual)}; that is not supported")
    if model.config.tie_word_embeddings:
        _untie(model)
        logger.info("untied the head of %s from its embedding: the embedding learns, the head does not", path)
    return model


def longest_dialogue(config: PreTrainedConfig, max_seq_len: int) -> int:
    """How many tokens a dialogue may have: `max_seq_len`, or the decoder's positions where they are fewer.

    config: the decoder's, or that of a model that holds it. Rotations that are stretched by a factor (linear,
    dynamic, YaRN) reach so many times farther than the positions that they were trained with.
    """
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not positions:
        return max_seq_len
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in rope.values() if isinstance(each, dict)] or [rope]  # one for each kind of layer
    stretched = [
        int((each.get("original_max_position_embeddings") or positions) * (each.get("factor") or 1))
        for each in kinds
    ]
    return min(max_seq_len, max(positions, *stretched))


def grow_vocabulary(model: PreTrainedModel, size: int) -> None:
    """Give embedding and head `size` rows, in place; a new row is the mean of the old ones.

    The means are taken as they are (no noise), so every process comes to the same rows.
    """
    if size <= model.config.vocab_size:
        return
    embedding = nn.Embedding.from_pretrained(_grown(model.get_input_embeddings().weight, size), freeze=False)
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(_head(_grown(model.get_output_embeddings().weight, size)))
    model.config.vocab_size = size


@contextmanager
def gathered(*parameters: nn.Parameter, write: bool = False) -> Iterator[None]:
    """Whole parameters within the block, also where ZeRO-3 has partitioned them.

    write: keep what the first process makes of them.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    try:
        import deepspeed
    except ImportError as error:
        raise ImportError("ZeRO-3 needs the package deepspeed: pip install deepspeed") from error
    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if write else None):
        yield


def _untie(model: PreTrainedModel) -> None:
    weight = model.get_input_embeddings().weight
    with gathered(weight):
        model.set_output_embeddings(_head(weight.detach().clone()))
    model.config.tie_word_embeddings = False


def _head(weight: torch.Tensor) -> nn.Linear:
    """A linear layer without bias around a weight [V, D]."""
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = nn.Parameter(weight)
    return head


def _grown(weight: nn.Parameter, size: int) -> torch.Tensor:
    """A copy of a weight [V, D] with rows added up to [size, D]."""
    with gathered(weight), torch.no_grad():
        mean = weight.mean(dim=0, keepdim=True, dtype=torch.float32).to(weight.dtype)  # [1, D]
        return torch.cat([weight, mean.expand(size - weight.shape[0], -1)])
