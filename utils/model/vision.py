"""Visual encoders behind one interface, and their features on the placeholders of a text.

An encoder is a `PreTrainedModel` that maps pixels [N, 3, H, W] to an output whose `last_hidden_state` is
[N, S, D]: CLIP's class token included, DINO's class and register tokens left out. A family of encoders is one row of
`FAMILIES`, found by the `model_type` of its configuration (`utils.model.register_encoder` adds one). Image size,
preprocessing and the number of tokens are the encoder's own.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionModel,
    Dinov2Model,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2VisionModel,
    SiglipVisionModel,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling

AT_ONCE = 32
"""Images that the encoder takes at a time: enough to fill a GPU, few enough that their activations are small."""


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
}
"""Those of transformers, to which this project's own, whose files are imported where they are needed, add theirs."""


def vision_family(config: PreTrainedConfig) -> VisionFamily:
    """The row of an encoder's configuration; `ValueError` where we have none."""
    if config.model_type not in FAMILIES:
        raise unsupported(config.model_type)
    return FAMILIES[config.model_type]


def image_size(config: PreTrainedConfig) -> int:
    """Pixels of the side of an image that an encoder takes."""
    return vision_family(config).image_size(config)


def unsupported(model_type: str) -> ValueError:
    return ValueError(
        f"the visual encoder is a {model_type!r}; supported are {', '.join(FAMILIES)}"
        " (also beside a text encoder); to use one of your own, give --plugin with the module that registers it"
    )


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
