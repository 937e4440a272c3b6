"""The VisualChat model and its parts. Importing this package registers them with transformers.

After `import utils.model`, the Auto classes load our checkpoints, and "mmca" and "cross" are attention
implementations for any decoder.
"""

import transformers
from transformers import AutoConfig, AutoModel, AutoProcessor

from . import mmca  # noqa: F401 (registers the attention implementations)
from .building import build_processor, build_visual_chat
from .checkpoint import load_checkpoint, save_full, save_trained_only
from .configuration_vision import OpenClipVisionConfig, QwenVisionConfig
from .configuration_visual_chat import VisualChatConfig
from .freezing import freeze
from .loading import CheckpointError
from .lora import LoraSettings
from .mmca_fused import FUSED
from .mmca_kernels import register_kernel
from .modeling_visual_chat import AUTO_CLASSES, VisualChatForConditionalGeneration, VisualChatModel
from .open_clip_vision import OpenClipVisionModel
from .processing_visual_chat import VisualChatProcessor
from .qwen_vit import QwenVisionModel

register_kernel("fused", FUSED)  # here, because its C++ does not travel inside checkpoints
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
    "save_full",
    "save_trained_only",
]
