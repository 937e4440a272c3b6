"""The configuration of a VisualChat model: an encoder, a projector, a decoder, and how they meet."""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedConfig

from .configuration_vision import config_from_dict

ATTENTION_TYPES = ("mmca", "cross", "causal")
PROJECTOR_TYPES = ("linear", "vit", "perceiver")
IMAGE_LAYERS = ("full", "no_mlp", "none")
IMAGE_GATES = ("none", "head")
IMAGE_SUMMARIES = ("none", "mean")

IGNORED_LABEL = -100
"""The label of a token that is not learned: the `ignore_index` of torch's cross entropy."""


class VisualChatConfig(PreTrainedConfig):
    """Shapes and choices of a VisualChat model.

    vision_config, text_config: the encoder's and the decoder's own configurations (objects or dicts).
    projector_type: "linear", "vit" or "perceiver" (see `projector`).
    attention: "mmca", "cross" or "causal" (see `mmca`); the weights fit all three.
    image_layers: what an image token goes through in each layer: "full", attention to itself and the MLP, as published;
        "no_mlp", attention to itself alone; "none", nothing: layers take its keys and values from the projected
        features. The weights fit all three.
    image_gate: "head" for a learned factor of each layer and head on what text reads of images, or "none".
    image_token_id: the id of the placeholder that image features replace.
    image_summary_token_id: the id of a text token behind each image, whose embedding is the mean of the image's
        features; None for no such token. It goes through the decoder as text does, so it reads the image's number.
    image_seq_length: how many placeholders stand for one image.
    lora: the settings of low-rank adapters whose weights are not merged (see `lora.LoraSettings`), or None.
    frozen_from: where the frozen weights came from: {"language_model": path or hub name, "vision_model": ...,
        "vocab_size": the decoder's before tokens were added}, or None where they are no longer the same.
    trained_parts: parts of decoder and encoder (see `freezing`) that are no longer the base models', or None.
    checkpoint_form: "full", or "trained" where the checkpoint takes its frozen weights from `frozen_from`.
    """

    model_type = "visual_chat"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012 (transformers' own form)

    if TYPE_CHECKING:  # what they are once this is made
        vision_config: PreTrainedConfig
        text_config: PreTrainedConfig
    else:
        vision_config: dict | PreTrainedConfig | None = None
        text_config: dict | PreTrainedConfig | None = None
    projector_type: str = "linear"
    attention: str = "mmca"
    image_layers: str = "full"
    image_gate: str = "none"
    image_token_id: int = 32000
    image_summary_token_id: int | None = None
    image_seq_length: int = 257
    lora: dict | None = None
    frozen_from: dict | None = None
    trained_parts: list[str] | None = None
    checkpoint_form: str = "full"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = _as_config(self.vision_config, default="clip_vision_model")
        text: PreTrainedConfig = _as_config(self.text_config, default="llama")
        self.text_config = text
        if self.projector_type not in PROJECTOR_TYPES:
            choices = ", ".join(PROJECTOR_TYPES)
            raise ValueError(f"projector_type is {self.projector_type!r}; choose one of {choices}")
        check_images_path(self.attention, self.image_layers, self.image_gate)
        # The embedding learns and the head does not, so they are never one tensor.
        self.tie_word_embeddings = False
        text.tie_word_embeddings = False
        super().__post_init__(**kwargs)


def check_images_path(attention: str, image_layers: str = "full", image_gate: str = "none") -> None:
    """Raise `ValueError`, in one line, for a choice that there is not, or choices that do not go together."""
    for name, value, choices in (
        ("attention", attention, ATTENTION_TYPES),
        ("image_layers", image_layers, IMAGE_LAYERS),
        ("image_gate", image_gate, IMAGE_GATES),
    ):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    if attention == "causal" and image_layers != "full":
        raise ValueError(
            f"image_layers {image_layers} needs attention mmca or cross: under causal attention image tokens are read"
            " as text is, so pass image_layers full"
        )
    if attention != "mmca" and image_gate != "none":
        raise ValueError(
            f"image_gate {image_gate} needs attention mmca: under {attention} images have no softmax of their own"
        )


def _as_config(value: dict | PreTrainedConfig | None, default: str) -> PreTrainedConfig:
    """The object itself where one is given (a decoder that was loaded keeps sharing it)."""
    if isinstance(value, PreTrainedConfig):
        return value
    return config_from_dict(value or {}, default)
