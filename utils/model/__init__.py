"""The VisualChat model and its parts. Importing this package registers them with transformers.

After `import utils.model`, the Auto classes load our checkpoints, and "mmca" and "cross" are attention
implementations for any decoder. What builds models and writes checkpoints is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import transformers
from transformers import AutoConfig, AutoModel, AutoProcessor

from . import mmca  # noqa: F401 (registers the attention implementations)
from .configuration_visual_chat import OpenClipVisionConfig, QwenVisionConfig, VisualChatConfig
from .loading import CheckpointError
from .lora import LoraSettings
from .mmca_flex import FLASH, FLEX
from .mmca_fused import FUSED
from .mmca_kernels import register_kernel
from .modeling_visual_chat import AUTO_CLASSES, VisualChatForConditionalGeneration, VisualChatModel
from .open_clip_vision import OpenClipVisionModel
from .processing_visual_chat import VisualChatProcessor
from .qwen_vit import QwenVisionModel
from .vision import register_encoder

if TYPE_CHECKING:
    from .building import build_processor, build_visual_chat
    from .checkpoint import load_checkpoint, save_full, save_trained_only
    from .freezing import freeze

for _name, _kernel in {"flash": FLASH, "flex": FLEX, "fused": FUSED}.items():  # the preferred ones first
    register_kernel(_name, _kernel)
AutoConfig.register(QwenVisionConfig.model_type, QwenVisionConfig)
AutoConfig.register(OpenClipVisionConfig.model_type, OpenClipVisionConfig)
AutoModel.register(QwenVisionConfig, QwenVisionModel)
AutoModel.register(OpenClipVisionConfig, OpenClipVisionModel)
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
    "freeze": "freezing",
    "load_checkpoint": "checkpoint",
    "save_full": "checkpoint",
    "save_trained_only": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """The functions of `_LATER`, whose modules are imported when one is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATER[name]}", __name__), name)
