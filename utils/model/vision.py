"""Visual encoders behind one interface, and their features on the placeholders of a text.

An encoder is a `PreTrainedModel` that maps pixels [N, 3, H, W] to an output whose `last_hidden_state` is
[N, S, D]: CLIP's class token included, DINO's class and register tokens left out. A family of encoders is one row of
`FAMILIES`, found by the `model_type` of its configuration; `register_encoder` adds one. Image size, preprocessing and
the number of tokens are the encoder's own.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2VisionModel,
    SiglipImageProcessor,
    SiglipVisionModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from . import open_clip_files
from .configuration_visual_chat import OWN_VISION_CONFIGS, OpenClipVisionConfig, QwenVisionConfig
from .open_clip_files import OpenClipFiles, file_of, find_open_clip
from .open_clip_vision import OpenClipVisionModel, describe
from .qwen_vit import QwenVisionModel

AT_ONCE = 32
"""Images that the encoder takes at a time: enough to fill a GPU, few enough that their activations are small."""

_HINT = "give a folder or hub name of a CLIP, SigLIP, DINO or open_clip's, or what helper.extract_qwen_vl has written"


@dataclass(frozen=True)
class VisionFamily:
    """How to make an encoder of one kind; how many tokens it gives for an image, and of which width.

    image_size: pixels of the side of an image. inputs: what the model is called with, for pixels [N, 3, H, W].
    left_out: how many tokens before those of the image are not used.
    """

    model: type[PreTrainedModel]
    sequence_length: Callable[[PreTrainedConfig], int]
    width: Callable[[PreTrainedConfig], int] = lambda config: config.hidden_size
    image_size: Callable[[PreTrainedConfig], int] = lambda config: config.image_size
    inputs: Callable[[PreTrainedConfig, torch.Tensor], tuple[torch.Tensor, ...]] = lambda _, pixels: (pixels,)
    left_out: Callable[[PreTrainedConfig], int] = lambda config: 0


def _patches(config: PreTrainedConfig) -> int:
    return (image_size(config) // config.patch_size) ** 2


def _input_size(config: PreTrainedConfig) -> int:
    """DINO takes images of any size: the one that its image processor makes, see `_settle_dino`."""
    return getattr(config, "input_size", None) or config.image_size


def _square_patches(config: PreTrainedConfig, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Square images as SigLIP 2 of any shape (NaFlex) takes them: as the grid of patches that its positions are of."""
    side = config.patch_size
    patches = pixels.unfold(2, side, side).unfold(3, side, side)  # [N, 3, rows, columns, P, P]
    shapes = torch.full((len(pixels), 2), patches.shape[2], dtype=torch.long, device=pixels.device)
    patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # [N, S, P x P x 3]
    return patches, torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device), shapes


FAMILIES = {
    "clip_vision_model": VisionFamily(CLIPVisionModel, lambda config: _patches(config) + 1),  # + class token
    "siglip_vision_model": VisionFamily(SiglipVisionModel, _patches),
    "siglip2_vision_model": VisionFamily(
        Siglip2VisionModel,
        _patches,
        image_size=lambda config: math.isqrt(config.num_patches) * config.patch_size,
        inputs=_square_patches,
    ),
    "dinov2": VisionFamily(Dinov2Model, _patches, image_size=_input_size, left_out=lambda config: 1),
    "dinov3_vit": VisionFamily(
        DINOv3ViTModel,
        _patches,
        image_size=_input_size,
        left_out=lambda config: 1 + config.num_register_tokens,
    ),
    OpenClipVisionConfig.model_type: VisionFamily(OpenClipVisionModel, lambda config: config.sequence_length),
    QwenVisionConfig.model_type: VisionFamily(
        QwenVisionModel, lambda config: config.query_grid**2, lambda config: config.output_size
    ),
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
    """
    FAMILIES[config.model_type] = VisionFamily(model, sequence_length, width)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)


def vision_family(config: PreTrainedConfig) -> VisionFamily:
    """The row of an encoder's configuration; `ValueError` where we have none."""
    if config.model_type not in FAMILIES:
        raise _unsupported(config.model_type)
    return FAMILIES[config.model_type]


def image_size(config: PreTrainedConfig) -> int:
    """Pixels of the side of an image that an encoder takes."""
    return vision_family(config).image_size(config)


def _unsupported(model_type: str) -> ValueError:
    return ValueError(
        f"the visual encoder is a {model_type!r}; supported are {', '.join(FAMILIES)}"
        " (also beside a text encoder); to use one of your own, give --plugin with the module that registers it"
    )


def vision_config_of(path: str) -> PreTrainedConfig:
    """The encoder's configuration from a folder or name, which may hold a text encoder beside it."""
    return _Source.of(path).config


def load_image_processor(path: str) -> BaseImageProcessor:
    """The preprocessing of an encoder's folder or name.

    Raises `ValueError` where it makes pictures of another size than the encoder takes.
    """
    source = _Source.of(path)
    if source.open_clip is not None:
        processor = open_clip_files.image_processor(source.open_clip)
    else:
        processor = AutoImageProcessor.from_pretrained(path)
    made, taken = _side(processor), image_size(source.config)
    if made is None and source.config.model_type == "siglip2_vision_model":  # it would take the pixels apart
        square, how = {"height": taken, "width": taken}, ("resample", "image_mean", "image_std")
        return SiglipImageProcessor(size=square, **{name: getattr(processor, name) for name in how})
    if made is not None and made != taken:
        raise ValueError(
            f"the image processor of {path} makes pictures of {made} pixels, but its encoder takes {taken}: correct"
            " size and crop_size in preprocessor_config.json"
        )
    return processor


def load_vision_tower(path: str, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """The pretrained encoder alone; a text encoder in the same folder is left where it is."""
    source = _Source.of(path)
    model = vision_family(source.config).model
    how = dict(config=source.config, dtype=dtype, output_loading_info=True)
    with _quiet_report():
        if source.open_clip is None:
            tower, report = model.from_pretrained(path, **how)
        else:
            with torch.device("meta"):
                skeleton = model(source.config)
            state = open_clip_files.read_weights(source.open_clip, skeleton)
            tower, report = model.from_pretrained(None, state_dict=state, **how)
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ValueError(f"{path} lacks weights of the visual encoder: {missing}")
    return tower


def run_encoder(tower: nn.Module, pixel_values: torch.Tensor, **asked: Any) -> BaseModelOutputWithPooling:
    """The encoder's output for pixels [N, 3, H, W]: its `last_hidden_state` has the tokens that are used, [N, S, D]."""
    family = vision_family(tower.config)
    outputs = tower(*family.inputs(tower.config, pixel_values.to(tower.dtype)), **asked)
    if skipped := family.left_out(tower.config):
        outputs.last_hidden_state = outputs.last_hidden_state[:, skipped:]
    return outputs


def encode_images(tower: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Pixels [N, 3, H, W] -> last hidden states [N, S, D]; without a graph unless the encoder learns."""
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(learns):
        return run_encoder(tower, pixel_values).last_hidden_state


def encode(tower: nn.Module, pixel_values: torch.Tensor, at_once: int = AT_ONCE) -> torch.Tensor:
    """Pixels [N, 3, H, W] -> last hidden states [N, S, D]; 0 at once takes all together.

    The encoder computes in its own precision, whatever autocast says around it. Under ZeRO-3 its weights are
    gathered by all processes whenever one enters it, so those with fewer images enter it with a blank one as
    often as the process with the most.
    """
    parts = pixel_values.split(at_once) if at_once else (pixel_values,)
    # Agreed on before anyone enters: who asked after its own parts would wait for those who still gather.
    entries = _most(len(parts), pixel_values.device) if at_once else 1
    with _own_precision(pixel_values.device):
        features = [encode_images(tower, part) for part in parts]
        for _ in range(entries - len(parts)):
            blank = encode_images(tower, torch.zeros_like(pixel_values[:1]))
            features[-1] = features[-1] + 0.0 * blank.sum()  # where the encoder learns, its backward runs too
    return features[0] if len(features) == 1 else torch.cat(features)


def encoder_outputs(
    tower: nn.Module, pixel_values: torch.Tensor, asked: dict[str, bool]
) -> BaseModelOutputWithPooling:
    """`encode`, or, with more that is `asked` for (`output_attentions`, ...), all images together and with a graph."""
    if asked:
        return run_encoder(tower, pixel_values, **asked)
    return BaseModelOutputWithPooling(last_hidden_state=encode(tower, pixel_values))


def refuse_both(
    pixel_values: torch.Tensor | None, outputs: dict[str, BaseModelOutputWithPooling] | None
) -> None:
    """Raises `ValueError` where images are given as pixels and as `mm_encoder_outputs`."""
    if pixel_values is not None and (outputs or {}).get("image") is not None:
        raise ValueError("pass either pixel_values or mm_encoder_outputs")


def encoded_features(
    outputs: dict[str, BaseModelOutputWithPooling] | None, project: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor | None:
    """The images' features in `mm_encoder_outputs`, [N, S, D]; rows [n, D] and lists become one of [1, n, D].

    `project` makes them of the encoder's, [N, S', Dv], where there are no others. None for no image.
    """
    image = (outputs or {}).get("image")
    if image is None:
        return None
    features = image.pooler_output
    if features is None:
        return project(image.last_hidden_state) if len(image.last_hidden_state) else None
    if isinstance(features, torch.Tensor) and features.ndim == 3:
        return features
    parts = [features] if isinstance(features, torch.Tensor) else features
    return torch.cat([part.flatten(0, -2) for part in parts])[None]


def place_features(
    inputs_embeds: torch.Tensor, places: torch.Tensor, features: torch.Tensor, wanted: int | None
) -> torch.Tensor:
    """Features [N, S, D] on the `wanted` places [B, Q] (True) of embeddings [B, Q, D], in order of appearance.

    Raises `ValueError` with both counts where they differ; wanted None: not known, so not asked.
    """
    features = features.to(inputs_embeds)
    given = features.shape[0] * features.shape[1]
    if wanted is not None and wanted != given:
        raise ValueError(
            f"there are {wanted} image tokens, but {given} image features: {features.shape[0]} images of"
            f" {features.shape[1]} tokens each; every image needs exactly that many placeholders"
        )
    return inputs_embeds.masked_scatter(places[..., None], features)


def place_summaries(inputs_embeds: torch.Tensor, kinds: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The mean of each image's features [N, S, D] on the text token behind it; embeddings [B, Q, D], kinds [B, K]."""
    is_image = kinds.to(inputs_embeds.device) == 1
    behind = torch.zeros_like(is_image)
    behind[:, 1:] = is_image[:, :-1] & ~is_image[:, 1:]
    places = behind[:, -inputs_embeds.shape[1] :, None]
    return inputs_embeds.masked_scatter(places, features.mean(dim=1).to(inputs_embeds))


def enter_encoder_anyway(
    inputs_embeds: torch.Tensor,
    get_image_features: Callable[[torch.Tensor], torch.Tensor],
    blank: torch.Tensor,
    training: bool,
) -> torch.Tensor:
    """Under several processes, a text-only batch runs one `blank` image whose features count for nothing.

    ZeRO-3 gathers the encoder's and the projector's weights, and every stage reduces the projector's gradients, on
    all ranks at once: a rank that stays away would leave the others waiting. Where the embedding is frozen, one process
    does so too: perhaps nothing else in the batch learns.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    several = several and torch.distributed.get_world_size() > 1
    alone = not training or inputs_embeds.requires_grad or not torch.is_grad_enabled()
    if alone and (not several or not (training or is_deepspeed_zero3_enabled())):
        return inputs_embeds
    return inputs_embeds + 0.0 * get_image_features(blank).sum().to(inputs_embeds)


@dataclass(frozen=True)
class _Source:
    """What a folder or name holds: an encoder in transformers' form, or in open_clip's."""

    config: PreTrainedConfig
    open_clip: OpenClipFiles | None = None

    @classmethod
    def of(cls, path: str) -> "_Source":
        config = _transformers_config(path)
        if config is not None and config.model_type in FAMILIES:
            if isinstance(config, Dinov2Config | DINOv3ViTConfig):
                _settle_dino(config, path)
            return cls(config)
        files = find_open_clip(path)
        if files is not None:
            return cls(describe(files.model_cfg), files)
        if config is None and Path(path).is_dir():
            raise ValueError(
                f"{path} holds no encoder (no config.json, no {open_clip_files.CONFIG}): {_HINT}"
            )
        if config is None:
            raise ValueError(
                f"{path}: there is no such folder, and the hub has no encoder of this name, or was not reached:"
                f" {_HINT}"
            )
        raise _unsupported(config.model_type)


def _transformers_config(path: str) -> PreTrainedConfig | None:
    """The encoder's part of config.json, or None where there is no such file, or one of another library."""
    if path.startswith(open_clip_files.PREFIXES) or open_clip_files.is_architecture(path):
        return None
    found = file_of(path, "config.json")
    if found is None:
        return None
    fields = json.loads(Path(found).read_text(encoding="utf-8"))
    model_type = fields.get("model_type")
    if model_type is None:
        return None
    if model_type in OWN_VISION_CONFIGS:
        return OWN_VISION_CONFIGS[model_type].from_pretrained(path)
    if model_type not in CONFIG_MAPPING:
        raise _unsupported(model_type)
    config = AutoConfig.from_pretrained(path)
    return getattr(config, "vision_config", config)


def _side(processor: BaseImageProcessor) -> int | None:
    """The side of the square pictures that a processor makes; None where it does not say."""
    crops = getattr(processor, "do_center_crop", False)
    size = dict((processor.crop_size if crops else processor.size) or {})
    return size["height"] if size.keys() >= {"height", "width"} and size["height"] == size["width"] else None


def _settle_dino(config: Dinov2Config | DINOv3ViTConfig, path: str) -> None:
    """Note the size of the images that DINO gets: its configuration says that of pretraining. Nothing is at random."""
    if file_of(path, "preprocessor_config.json"):
        config.input_size = _side(AutoImageProcessor.from_pretrained(path))
    if isinstance(config, Dinov2Config):
        config.intermediate_size = int(
            config.hidden_size * config.mlp_ratio
        )  # as others say it (`--vis_proj vit`)
    else:
        config.pos_embed_shift = config.pos_embed_jitter = config.pos_embed_rescale = None


@contextmanager
def _quiet_report() -> Iterator[None]:
    """Without transformers' table of unexpected weights: a text encoder's are expected to be left."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _own_precision(device: torch.device) -> AbstractContextManager[None]:
    """Without autocast, which not every device has: shapes alone (the memory plan's) have none."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _most(count: int, device: torch.device) -> int:
    """The largest count of all processes, where they must agree on it."""
    together = torch.distributed
    if not is_deepspeed_zero3_enabled() or not together.is_initialized() or together.get_world_size() == 1:
        return count
    counts = torch.tensor(count, device=device)
    together.all_reduce(counts, op=together.ReduceOp.MAX)
    return int(counts)
