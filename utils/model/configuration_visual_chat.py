"""The configuration of a VisualChat model: an encoder, a projector, a decoder, and how they meet.

Also those of the encoders that transformers has none for: Qwen-VL's, and whatever open_clip builds.
"""

from typing import TYPE_CHECKING, Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

ATTENTION_TYPES = ("mmca", "cross", "causal")
PROJECTOR_TYPES = ("linear", "vit", "perceiver")
IMAGE_LAYERS = ("full", "no_mlp", "none")
IMAGE_GATES = ("none", "head")
IMAGE_SUMMARIES = ("none", "mean")

IGNORED_LABEL = -100
"""The label of a token that is not learned: the `ignore_index` of torch's cross entropy."""

IMPLEMENTATIONS = {"mmca": "mmca", "cross": "cross", "causal": "sdpa"}
"""The decoder's `attn_implementation` for each attention of a VisualChat configuration."""

OWN = ("mmca", "cross")
"""The implementations that `mmca` registers."""


class QwenVisionConfig(PreTrainedConfig):
    """Qwen-VL's visual encoder: a ViT as wide and deep as OpenCLIP's bigG/14, then a resampler.

    The names without prefix describe the ViT. position_grid: the side of the grid for which positions are
    stored; those of any other grid are interpolated. query_grid: the resampler gives query_grid^2 tokens, each
    output_size wide, and attends with resampler_heads heads.
    The defaults are the published encoder's; Bai et al., "Qwen-VL", 2023, and its config.json.
    """

    model_type = "qwen_vl_vision_model"
    base_config_key = "vision_config"

    image_size: int = 448
    patch_size: int = 14
    num_channels: int = 3
    hidden_size: int = 1664
    intermediate_size: int = 8192
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    position_grid: int = 16
    query_grid: int = 16
    output_size: int = 4096
    resampler_heads: int = 32


class OpenClipVisionConfig(PreTrainedConfig):
    """A visual encoder of open_clip.

    vision_cfg, embed_dim, quick_gelu: as in open_clip's own description of the model, from which open_clip
    builds it. The rest says what comes out, and is found by `open_clip_vision.describe`: sequence_length tokens
    of hidden_size for a square image of image_size; num_attention_heads, intermediate_size and hidden_act serve
    a projector that adds one more layer of the encoder's kind.
    """

    model_type = "open_clip_vision_model"
    base_config_key = "vision_config"

    vision_cfg: dict | None = None
    embed_dim: int = 512
    quick_gelu: bool = False
    image_size: int = 224
    patch_size: int | None = None
    sequence_length: int = 257
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5


OWN_VISION_CONFIGS = {config.model_type: config for config in (QwenVisionConfig, OpenClipVisionConfig)}


def _as_config(given: dict | PreTrainedConfig | None, default: str) -> PreTrainedConfig:
    """A configuration from its fields, of our own kinds or one that transformers knows; `ValueError` for others.

    An object stays the same one: a decoder that was loaded keeps sharing it.
    """
    if isinstance(given, PreTrainedConfig):
        return given
    fields = dict(given or {})
    model_type = fields.pop("model_type", default)
    if model_type in OWN_VISION_CONFIGS:
        return OWN_VISION_CONFIGS[model_type](**fields)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers knows no {model_type!r}; give --plugin with its module")
    return AutoConfig.for_model(model_type, **fields)


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
    trained_parts: parts of decoder and encoder (see `lora`) that are no longer the base models', or None.
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


def choose_attention(config: VisualChatConfig) -> None:
    """Give the decoder the attention that the configuration names; causal keeps a stock one asked for."""
    whole = config._attn_implementation
    if whole in OWN:  # asked for the whole model, but the encoder has none of the kind
        config._attn_implementation = {"": "sdpa", "vision_config": None, "text_config": whole}
        config.attention = whole
    check_images_path(config.attention, config.image_layers, config.image_gate)  # each may be chosen anew
    asked = config.text_config._attn_implementation
    if config.attention != "causal" or asked in (None, *OWN):
        config.text_config._attn_implementation = IMPLEMENTATIONS[config.attention]


def attention_of_parts(
    config: PreTrainedConfig, asked: str | dict[str, str | None] | None
) -> dict[str, str | None]:
    """What transformers' `attn_implementation` means for a VisualChat model: an implementation for each part.

    A name for the whole model is the encoder's, and the decoder's too where `config.attention` is "causal"; under
    "mmca" and "cross" the decoder keeps these, which are part of what the model is. One of the two, asked for by name,
    is the decoder's (then `config.attention` has to become it), and leaves the encoder alone.

    Raises `ValueError` where the decoder is to compute something else than the configuration says.
    """
    if not isinstance(asked, dict):
        whole = {"": asked, "vision_config": asked}
        whole |= {"text_config": asked} if config.attention == "causal" else {}
        asked = {"text_config": asked} if asked in OWN else whole
    if {asked.get(""), asked.get("vision_config")} & set(OWN):
        raise ValueError(f"{' and '.join(OWN)} are attentions of the decoder, not of the encoder")
    decoder = asked.get("text_config")
    if decoder not in OWN and decoder is not None and config.attention != "causal":
        raise ValueError(
            f"this model's decoder computes {config.attention}, and {decoder} would make it a causal one; to compare"
            ' with that, load it with attention="causal"'
        )
    kept = (
        IMPLEMENTATIONS[config.attention]
        if config.attention != "causal"
        else config.text_config._attn_implementation
    )
    return {**asked, "text_config": decoder or kept}


def check_decoder(config: PreTrainedConfig, decoder: PreTrainedConfig) -> None:
    """`ValueError` where a decoder was switched to what its model's configuration does not say."""
    computes = decoder._attn_implementation
    wanted, stock = IMPLEMENTATIONS[config.attention], ("eager", "sdpa", "flex_attention")
    if computes != wanted and (
        computes in OWN or (wanted in OWN and (computes in stock or "flash" in computes))
    ):
        other = computes if computes in OWN else "causal"
        raise ValueError(
            f"the configuration says attention {config.attention}, but the decoder computes {computes}; call"
            f" set_attn_implementation of the whole model, or load it with attention={other!r}"
        )
