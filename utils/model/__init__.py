"""The VisualChat model and its parts. Importing this package registers them with transformers.

After `import utils.model`, the Auto classes load our checkpoints, and "mmca" and "cross" are attention
implementations for any decoder. What builds models and writes checkpoints is imported when it is asked for.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from . import mmca  # noqa: F401 (registers the attention implementations)
from .configuration_visual_chat import (
    OWN_VISION_CONFIGS,
    OpenClipVisionConfig,
    QwenVisionConfig,
    VisualChatConfig,
)
from .loading import AUTO_CLASSES, CheckpointError
from .lora import LoraSettings
from .modeling_visual_chat import VisualChatForConditionalGeneration, VisualChatModel
from .processing_visual_chat import VisualChatProcessor
from .vision import FAMILIES, VisionFamily

if TYPE_CHECKING:
    from .building import build_processor, build_visual_chat, freeze
    from .checkpoint import load_checkpoint, save_full, save_trained_only

_OF_TRANSFORMERS = frozenset(FAMILIES)

_WINGS = ("mmca_flex", "mmca_fused", "open_clip_vision", "qwen_vit")
"""Kernels of attention, the preferred ones first, and encoders that transformers has not. Each registers itself when it
is imported, and the model does without those that are not there.
"""

for _name in _WINGS:
    if find_spec(f"{__name__}.{_name}"):
        import_module(f"{__name__}.{_name}")
for _config in OWN_VISION_CONFIGS.values():
    AutoConfig.register(_config.model_type, _config)
    if _config.model_type in FAMILIES:
        AutoModel.register(_config, FAMILIES[_config.model_type].model)
AutoConfig.register(VisualChatConfig.model_type, VisualChatConfig)
for _auto, _name in AUTO_CLASSES.items():
    getattr(transformers, _auto).register(VisualChatConfig, globals()[_name])
AutoProcessor.register(VisualChatConfig, VisualChatProcessor)
# Saved checkpoints carry these classes' files and say so in their config.json.
VisualChatConfig.register_for_auto_class()
VisualChatModel.register_for_auto_class("AutoModel")
VisualChatForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = [
    "CheckpointError",
    "LoraSettings",
    "OpenClipVisionConfig",
    "QwenVisionConfig",
    "VisualChatConfig",
    "VisualChatForConditionalGeneration",
    "VisualChatModel",
    "VisualChatProcessor",
    "build_processor",
    "build_visual_chat",
    "freeze",
    "load_checkpoint",
    "register_encoder",
    "save_full",
    "save_trained_only",
]

_LATER = {
    "build_processor": "building",
    "build_visual_chat": "building",
    "freeze": "building",
    "load_checkpoint": "checkpoint",
    "save_full": "checkpoint",
    "save_trained_only": "checkpoint",
}


def register_encoder(
    config: type[PreTrainedConfig],
    model: type[PreTrainedModel],
    sequence_length: Callable[[PreTrainedConfig], int],
    width: Callable[[PreTrainedConfig], int] = lambda config: config.hidden_size,
) -> None:
    """Let folders and checkpoints hold one more kind of encoder; call it in a module that `--plugin` names.

    config: has a `model_type` of its own, or is one of transformers' classes, and says `image_size`. model: maps pixels
    [N, 3, H, W] to an output whose `last_hidden_state` is [N, sequence_length(config), width(config)].

    Raises `ValueError` for a `model_type` of transformers' own or of this project's.
    """
    name = config.model_type
    known = CONFIG_MAPPING[name] if name in CONFIG_MAPPING else config  # noqa: SIM401 (its `get` loads nothing)
    is_users_own = known.__module__.partition(".")[0] not in ("transformers", __name__.partition(".")[0])
    if name in _OF_TRANSFORMERS or not (known is config or is_users_own):
        raise ValueError(f"there is a model of type {name!r} already; give yours a model_type of its own")
    FAMILIES[name] = VisionFamily(model, sequence_length, width)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)


def __getattr__(name: str) -> Any:
    """The functions of `_LATER`, whose modules are imported when one is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATER[name]}", __name__), name)
