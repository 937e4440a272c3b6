"""Strict loading of both forms of checkpoint: every weight in the folder, or the trained ones over bases. And what
transformers' own `save_pretrained` writes of our models.

A base decoder is made ready to be joined: its own head, and room for the image token.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import cached_file

from .configuration_visual_chat import OWN, VisualChatConfig, attention_of_parts
from .lora import (
    DECODER,
    ENCODER,
    GATE,
    PROJECTOR,
    LoraSettings,
    held_names,
    inject_lora,
    is_lora,
    merge_lora,
)
from .pretrained_encoders import LOCAL_FOLDER, load_vision_tower

logger = logging.getLogger(__name__)

TRAINED_WEIGHTS = "trained.safetensors"
NEW_PARTS = (PROJECTOR, GATE)
"""What no base model has."""

HEAD = "lm_head.weight"
NEW_HEAD_ROWS = "lm_head.new_rows"
"""The head's rows of the tokens we added: they do not learn, but the base model has none."""

_CHOICES = ("attention", "image_layers")
"""What of a configuration may be chosen anew: the same weights serve."""

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

_OUTPUT_SCALES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


_MODEL = "modeling_visual_chat"

AUTO_CLASSES = {
    "AutoModel": "VisualChatModel",
    "AutoModelForImageTextToText": "VisualChatForConditionalGeneration",
    "AutoModelForMultimodalLM": "VisualChatForConditionalGeneration",
}
"""Which of our models each Auto class loads; a checkpoint's configuration says so to those without this project."""


class CheckpointError(ValueError):
    """A checkpoint is incomplete or does not fit; the message says what was found and what to do."""


def load_model(
    cls: type[PreTrainedModel],
    load: Callable[..., Any],
    path: str | Path | None,
    *args: Any,
    whole_class: type[PreTrainedModel],
    config: VisualChatConfig | None = None,
    base_models: dict[str, str] | None = None,
    output_loading_info: bool = False,
    **kwargs: Any,
) -> Any:
    """What `from_pretrained` of our class does; `load` is transformers' own, `whole_class` our model with its head.

    All parameters can learn, as in any model of transformers; `building.freeze` says which of them do where the
    published recipe is followed. Raises `CheckpointError` where a key is missing or unexpected, or where a base
    model is not found.
    """
    if path is not None and not isinstance(config, PreTrainedConfig):
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        overrides = {name: kwargs.pop(name) for name in _CHOICES if name in kwargs}
        config = cls.config_class.from_pretrained(config or path, **hub, **overrides)
    if config is None:
        raise ValueError("from_pretrained without a path needs a config")
    asked = kwargs.pop("attn_implementation", None)
    if asked is not None:
        config = copy.deepcopy(config)
        config._attn_implementation = parts = attention_of_parts(config, asked)
        if parts["text_config"] in OWN:
            config.attention = parts["text_config"]
    if not is_deepspeed_zero3_enabled():
        kwargs.setdefault("ignore_mismatched_sizes", True)  # then they are in the report, and refused below
    if path is None or config.checkpoint_form == "full":
        model, report = load(path, *args, config=config, output_loading_info=True, **kwargs)
        _refuse_misfits(path, report)
    elif not hasattr(cls, "generate"):  # without a head: a part of the whole
        whole, report = whole_class.from_pretrained(
            path, *args, config=config, base_models=base_models, output_loading_info=True, **kwargs
        )
        model = whole.model
    else:
        model, report = _load_trained_over_bases(cls, load, path, config, base_models, *args, **kwargs)
    _spare_packed_kernel(model)
    return (model, report) if output_loading_info else model


def save_model(
    model: PreTrainedModel, save: Callable[..., None], folder: str | PathLike, **kwargs: Any
) -> None:
    """What `save_pretrained` of our class does; `save` is transformers' own.

    Any weight may have learnt by now, so the folder no longer says which base models they came from.
    """
    config = model.config
    changed = ("lora", "frozen_from", "trained_parts", "checkpoint_form")
    before = {name: getattr(config, name) for name in changed}
    if config.lora:
        state = kwargs.get("state_dict") or model.state_dict()
        kwargs["state_dict"] = merge_lora(state, LoraSettings(**config.lora))
    config.lora = config.frozen_from = config.trained_parts = None
    config.checkpoint_form = "full"
    name_auto_classes(config)
    try:
        save(folder, **kwargs)
        copy_encoder_code(model, folder)
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def name_auto_classes(config: VisualChatConfig) -> None:
    """Let a saved configuration say which class each Auto class loads."""
    named = {auto: f"{_MODEL}.{name}" for auto, name in AUTO_CLASSES.items()}
    config.auto_map = {**(getattr(config, "auto_map", None) or {}), **named}


def copy_encoder_code(model: PreTrainedModel, folder: str | PathLike) -> None:
    """Let the code in a checkpoint's folder import its encoder's, where that is a file beside the model's.

    The other encoders' files stay behind; transformers copies only what a model's own file imports.
    """
    tower = model.base_model.vision_tower
    package, _, name = type(tower).__module__.rpartition(".")
    model_file = Path(folder, f"{_MODEL}.py")
    if package != __name__.rpartition(".")[0] or not model_file.is_file():
        return
    custom_object_save(tower, folder)
    line = f"from .{name} import {type(tower).__name__}  # noqa: E402, F401 (it registers itself)\n"
    if line not in (code := model_file.read_text(encoding="utf-8")):
        model_file.write_text(f"{code}\n{line}", encoding="utf-8")


def _spare_packed_kernel(model: PreTrainedModel) -> None:
    """Keep 4-bit layers of odd widths from bitsandbytes' fastest kernel for CPUs, which fails on them.

    It takes 32 rows and a whole block of a row's weights (64, say) at a time, and does not ask whether they fit.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(module, "support_avx512bf16_for_cpu", False) and state is not None:
            rows, width = state.shape
            module.support_avx512bf16_for_cpu = rows % 32 == 0 and width % state.blocksize == 0


def load_decoder(path: str, dtype: torch.dtype | str | None = None, **more: Any) -> PreTrainedModel:
    """A causal language model whose head is a tensor of its own, from a folder or hub name.

    Raises `ValueError` where weights are missing, or where the model does to its logits what we do not.
    """
    model, report = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True, **more)
    if report["missing_keys"]:
        raise ValueError(f"{path} lacks weights of the decoder: {', '.join(sorted(report['missing_keys']))}")
    unusual = [name for name in _OUTPUT_SCALES if getattr(model.config, name, None) not in (None, 1, 1.0)]
    if model.get_output_embeddings().bias is not None:
        unusual.append("a bias in the head")
    if unusual:
        raise ValueError(f"{path} changes its logits by {', '.join(unusual)}; that is not supported")
    if model.config.tie_word_embeddings:
        weight = model.get_input_embeddings().weight
        with gathered(weight):
            model.set_output_embeddings(_head(weight.detach().clone()))
        model.config.tie_word_embeddings = False
        logger.info("untied the head of %s from its embedding", path)
    return model


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


def _load_trained_over_bases(
    cls: type[PreTrainedModel],
    load: Callable[..., Any],
    path: str | Path,
    config: VisualChatConfig,
    base_models: dict[str, str] | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    if is_deepspeed_zero3_enabled():
        raise CheckpointError(
            f"{path} holds trained weights only, which cannot be loaded in parts under ZeRO-3; save the full"
            " form once (load_checkpoint, then save_full) and start from that"
        )
    hub = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
    trained = load_file(_trained_file(path, hub))
    with torch.device("meta"):
        skeleton = cls(config)
    needed = held_names(skeleton) | {name for name in skeleton.state_dict() if name.startswith(NEW_PARTS)}
    assert config.frozen_from is not None, "the trained form says what its base models are"
    old_vocabulary = config.frozen_from["vocab_size"]
    if config.text_config.vocab_size > old_vocabulary and HEAD not in needed:
        needed.add(NEW_HEAD_ROWS)
    _refuse_misfits(path, {"missing_keys": needed - set(trained)})
    adapters = {name: trained.pop(name) for name in list(trained) if is_lora(name)}

    state = _base_weights(path, config, base_models, kwargs.get("dtype") or config.dtype)
    if NEW_HEAD_ROWS in trained:
        state[HEAD][old_vocabulary:] = trained.pop(NEW_HEAD_ROWS)
    state.update(trained)
    model, report = load(None, *args, config=config, state_dict=state, output_loading_info=True, **kwargs)
    _refuse_misfits(path, report)
    _load_adapters(path, model, adapters)
    model.generation_config = type(model.generation_config).from_pretrained(path, **hub)
    return model, report


def _base_weights(
    path: str | Path,
    config: VisualChatConfig,
    base_models: dict[str, str] | None,
    dtype: torch.dtype | str | None,
) -> dict[str, torch.Tensor]:
    """The frozen weights under our names, in main memory, the vocabulary grown to ours."""
    bases = {**(config.frozen_from or {}), **(base_models or {})}
    for part in ("language_model", "vision_model"):
        folder = Path(bases[part].removeprefix(LOCAL_FOLDER))
        if folder.is_absolute() and not folder.exists():
            raise CheckpointError(
                f"{path} holds trained weights only and takes the rest from {folder}, which does not"
                f' exist here; say where it is: base_models={{"{part}": ...}}'
            )
    decoder = load_decoder(bases["language_model"], dtype)
    if decoder.config.vocab_size != bases["vocab_size"]:
        raise CheckpointError(
            f"{path} was trained over a decoder of {bases['vocab_size']} tokens, but"
            f" {bases['language_model']} has {decoder.config.vocab_size}; pass the right one in base_models"
        )
    grow_vocabulary(decoder, config.text_config.vocab_size)
    tower = load_vision_tower(bases["vision_model"], dtype)
    state = {DECODER + name: tensor for name, tensor in decoder.base_model.state_dict().items()}
    state.update({ENCODER + name: tensor for name, tensor in tower.state_dict().items()})
    state[HEAD] = decoder.get_output_embeddings().weight.detach()
    return state


def _load_adapters(path: str | Path, model: PreTrainedModel, adapters: dict[str, torch.Tensor]) -> None:
    """Adapter weights beside the frozen ones, as they were trained."""
    if model.config.lora:
        inject_lora(model, LoraSettings(**model.config.lora))
    places = {name: parameter for name, parameter in model.named_parameters() if is_lora(name)}
    _refuse_misfits(
        path, {"missing_keys": set(places) - set(adapters), "unexpected_keys": set(adapters) - set(places)}
    )
    with torch.no_grad():
        for name, parameter in places.items():
            parameter.copy_(adapters[name])


def _trained_file(path: str | Path, hub: dict[str, Any]) -> str:
    try:
        return cached_file(str(path), TRAINED_WEIGHTS, **hub)
    except OSError as error:
        raise CheckpointError(f"{path} has no {TRAINED_WEIGHTS}; copy the whole folder again") from error


def _refuse_misfits(path: str | Path | None, report: dict[str, Iterable[Any]]) -> None:
    """`CheckpointError` naming the keys that are missing, unexpected or of another shape."""
    found = []
    for kind in ("missing", "unexpected", "mismatched"):
        keys = report.get(f"{kind}_keys") or ()
        keys = sorted(key if isinstance(key, str) else key[0] for key in keys)  # mismatched ones bring shapes
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            found.append(f"{len(keys)} {kind}: {', '.join(keys[:5])}{more}")
    if found:
        raise CheckpointError(
            f"{path or 'the weights given'}: the keys do not fit the model ({'; '.join(found)}); was the"
            " folder copied whole, and does its config.json belong to these weights?"
        )


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
