"""Visual encoders built by open_clip, of any architecture it knows, behind transformers' interface; and their files.

What comes out is the last hidden state before pooling: of open_clip's own ViTs with the class token and before
the last layer norm, as transformers' CLIP gives it; of timm's models their unpooled features; of the ResNets
the last feature map, a token for each place. A map is read by the axis that is as wide as the encoder says: most of
timm's have it second, Swin last.

A name is open_clip's where it is
- `local-dir:FOLDER` or `hf-hub:ORGANISATION/NAME`, which are open_clip's own ways to say so;
- `ARCHITECTURE/TAG`, an architecture of open_clip with the tag of its weights: `ViT-bigG-14/laion2b_s39b_b160k`;
- a folder or a hub name that holds `open_clip_config.json` and no encoder in transformers' form.

Of the weights only the encoder's (`visual.*`) are read.
"""

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import CLIPImageProcessor, PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.modeling_outputs import BaseModelOutput

from .configuration_visual_chat import OpenClipVisionConfig
from .pretrained_encoders import (
    LIBRARIES,
    OPEN_CLIP_CONFIG,
    PREFIXES,
    EncoderLibrary,
    EncoderSource,
    file_of,
)
from .projector import MultiHeadAttention
from .vision import FAMILIES, VisionFamily

WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_RESAMPLING = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}
_NO_REGULARISATION = {"patch_dropout": 0.0, "timm_drop": 0.0, "timm_drop_path": None}


class OpenClipVisionModel(PreTrainedModel):
    """Pixels [N, 3, H, W] -> `last_hidden_state` [N, S, D]; `trunk` is what open_clip built."""

    config_class = OpenClipVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["OpenClipVisionModel"]  # noqa: RUF012 (its parts are open_clip's: kept on one device)

    def __init__(self, config: OpenClipVisionConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        in_parts = _zero3() is not None and "timm_model_name" in (config.vision_cfg or {})
        self.trunk = _trunk_in_parts(config) if in_parts else _trunk(config)
        self._lacks_buffers = any(each.is_meta for each in self.trunk.buffers())
        self._buffers_anew: dict[str, torch.Tensor] = {}
        self.post_init()

    def get_correct_attn_implementation(self, *_args: Any, **_kwargs: Any) -> str:
        """Its attention is torch's own, whatever is asked for the whole model that it is in."""
        return "sdpa"

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutput:
        if hasattr(self.trunk, "set_grad_checkpointing"):
            self.trunk.set_grad_checkpointing(self.gradient_checkpointing and self.training)
        return BaseModelOutput(last_hidden_state=_tokens(self.trunk(pixel_values), self.trunk))

    def train(self, mode: bool = True) -> "OpenClipVisionModel":
        """The trunk stays as it was pretrained: batch norms keep their statistics."""
        super().train(mode)
        self.trunk.eval()
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """open_clip has initialised what it built. What timm computes and does not save (the places of relative
        positions, rotary tables) transformers leaves empty when it loads weights; it is computed anew here.
        """
        if not self._lacks_buffers:
            return
        if hasattr(module, "init_non_persistent_buffers"):  # timm's own way, where a layer has it
            module.init_non_persistent_buffers()
            return
        buffers = dict(module.named_buffers(recurse=False))
        for name in buffers.keys() - (module.state_dict().keys() if buffers else set()):
            if not self._buffers_anew:
                with torch.device("cpu"):
                    self._buffers_anew = dict(_trunk(self.config).named_buffers())
            path = next(path for path, each in self.trunk.named_modules() if each is module)
            buffers[name].copy_(self._buffers_anew[f"{path}.{name}"])


def describe(model_cfg: dict[str, Any]) -> OpenClipVisionConfig:
    """The configuration of an encoder from open_clip's description of a model ("model_cfg").

    Tokens and width are measured: open_clip builds the encoder on the meta device and a picture without data
    goes through. Raises `ValueError` where images are not square, or where no tokens come out.
    """
    return copy.deepcopy(_measured(json.dumps(model_cfg)))


@lru_cache(maxsize=8)
def _measured(model_cfg_json: str) -> OpenClipVisionConfig:
    model_cfg = json.loads(model_cfg_json)
    vision_cfg = dict(model_cfg["vision_cfg"])
    size = vision_cfg.get("image_size", 224)
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"the encoder takes images of {size}; only square ones are supported")
    config = OpenClipVisionConfig(
        vision_cfg=vision_cfg,
        embed_dim=model_cfg["embed_dim"],
        quick_gelu=model_cfg.get("quick_gelu", False),
        image_size=sides.pop(),
        patch_size=vision_cfg.get("patch_size"),
    )
    with torch.device("meta"), torch.no_grad():
        model = OpenClipVisionModel(config)
        tokens = model(torch.zeros(1, 3, config.image_size, config.image_size)).last_hidden_state
    config.sequence_length, config.hidden_size = tokens.shape[1:]
    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    config.num_attention_heads = attentions[0].heads if attentions else max(config.hidden_size // 64, 1)
    config.num_hidden_layers = len(attentions) or 1
    config.intermediate_size = int(config.hidden_size * vision_cfg.get("mlp_ratio", 4.0))
    config.hidden_act = "quick_gelu" if config.quick_gelu else "gelu"
    return config


def _trunk(config: OpenClipVisionConfig) -> nn.Module:
    """What open_clip builds, without pooling and projection, its attention in linear layers."""
    try:
        from open_clip.model import CLIPVisionCfg, _build_vision_tower
    except ImportError as error:
        raise ImportError(
            "this encoder is built by the package open_clip: pip install open_clip_torch"
        ) from error
    settings = CLIPVisionCfg(
        **{**(config.vision_cfg or {}), **_NO_REGULARISATION, "timm_model_pretrained": False}
    )
    trunk = _without_pooling(_build_vision_tower(config.embed_dim, settings, config.quick_gelu))
    for module in list(trunk.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MultiheadAttention):
                if not child.batch_first:
                    raise ValueError(f"{name} of {type(module).__name__} takes the batch second; use another")
                setattr(module, name, MultiHeadAttention(child.embed_dim, child.num_heads))
    return trunk


def _tokens(features: torch.Tensor, trunk: nn.Module) -> torch.Tensor:
    """What a trunk gives as [N, S, D]: tokens already, or a map [N, D, rows, columns] or [N, rows, columns, D]."""
    names = ("num_features", "head_hidden_size")
    widths = {width for name in names if (width := getattr(trunk, name, None)) is not None}
    if features.ndim == 4:
        is_last = features.shape[3] in widths and (
            features.shape[1] not in widths or getattr(trunk, "output_fmt", None) == "NHWC"
        )
        features = features.flatten(1, 2) if is_last else features.flatten(2).transpose(1, 2)
    if features.ndim != 3 or (widths and features.shape[2] not in widths):
        wanted = f" of width {' or '.join(map(str, sorted(widths)))}" if widths else ""
        raise ValueError(
            f"the encoder {type(trunk).__name__} gives {list(features.shape)} for an image, not tokens{wanted};"
            " use another"
        )
    return features


def _zero3() -> Any:
    """DeepSpeed's context that shares out each module's weights as soon as it is built, or None."""
    zero = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    return getattr(zero, "top_level_context", None)


def _trunk_in_parts(config: OpenClipVisionConfig) -> nn.Module:
    """Built whole and then shared out: timm initialises layers of which a part would have no weights left."""
    context = _zero3()
    zero = sys.modules[type(context).__module__]
    zero.shutdown_init_context()
    try:
        with torch.device("cpu"):
            trunk = _trunk(config)
    finally:
        zero.restore_init_context()
    for module in trunk.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(context.dtype)
        context._post_init_method(module)
    return trunk


def _without_pooling(trunk: nn.Module) -> nn.Module:
    """The same weights up to the last hidden state, by each architecture's own switches."""
    if hasattr(trunk, "trunk"):  # open_clip's adapter around a model of timm
        try:
            trunk.trunk.reset_classifier(0, "")
        except AssertionError as error:
            name = type(trunk.trunk).__name__
            raise ValueError(f"the encoder {name} of timm does not work without pooling: {error}") from error
        return trunk.trunk
    if hasattr(trunk, "transformer"):
        trunk.proj = trunk.attn_pool = None
        trunk.ln_post = nn.Identity()
        trunk.pool_type, trunk.output_tokens, trunk.final_ln_after_pool = "none", False, False
        return trunk
    if hasattr(trunk, "attnpool"):
        trunk.attnpool = nn.Identity()
        return trunk
    raise ValueError(f"open_clip built a {type(trunk).__name__}, of which we do not know the pooling")


@dataclass(frozen=True)
class OpenClipFiles:
    """An OpenCLIP model: open_clip's description, its preprocessing, and a way to the file of its weights."""

    name: str
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    weights: Callable[[], str]


def find_open_clip(name: str) -> OpenClipFiles | None:
    """The model of this name, or None where it is not open_clip's; nothing but descriptions is read.

    Raises `ValueError` where it is, but is not found.
    """
    for prefix in PREFIXES:
        if name.startswith(prefix):
            found = _in_folder_or_hub(name.removeprefix(prefix), name)
            if found is None:
                raise ValueError(
                    f"{name}: there is no {OPEN_CLIP_CONFIG}; give a folder or a hub name that holds one"
                )
            return found
    if is_architecture(name):
        architecture, _, tag = name.partition("/")
        return _by_tag(architecture, tag)
    return _in_folder_or_hub(name, name)


def is_architecture(name: str) -> bool:
    """Whether a name without folder is ARCHITECTURE or ARCHITECTURE/TAG of open_clip.

    Told by open_clip's own files of descriptions, for importing it takes seconds.
    """
    architecture, package = name.partition("/")[0], find_spec("open_clip")
    if not architecture or Path(name).exists() or package is None or package.origin is None:
        return False
    return (Path(package.origin).parent / "model_configs" / f"{architecture}.json").is_file()


def read_weights(files: OpenClipFiles, model: nn.Module) -> dict[str, torch.Tensor]:
    """The encoder's weights under the names of `model`; those of pooling and projection are left.

    Raises `ValueError` where some are missing.
    """
    path = files.weights()
    if path.endswith(".safetensors"):
        with safe_open(path, "pt") as stored:
            visual = {name: stored.get_tensor(name) for name in stored.keys() if _is_visual(name)}  # noqa: SIM118
    else:
        stored = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        stored = stored.get("state_dict", stored)
        visual = {name: tensor for name, tensor in stored.items() if _is_visual(name)}
    visual = {name.removeprefix("module.").removeprefix("visual."): each for name, each in visual.items()}
    if any(name.startswith("trunk.") for name in visual):  # a model of timm, which open_clip calls so too
        visual = {name: each for name, each in visual.items() if name.startswith("trunk.")}
    else:
        visual = {f"trunk.{name}": each for name, each in visual.items()}
    wanted = set(model.state_dict())
    state = {name: each for name, each in split_in_projections(visual).items() if name in wanted}
    if missing := sorted(wanted - set(state)):
        raise ValueError(
            f"{path} lacks {len(missing)} weights of the visual encoder that open_clip builds for {files.name}:"
            f" {', '.join(missing[:5])}"
        )
    return state


def split_in_projections(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights named as in `nn.MultiheadAttention` (`in_proj_weight`, `in_proj_bias`) under our names.

    The three parts are copies: views of one storage could not be saved apart.
    """
    split: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        for kind in ("weight", "bias"):
            if name.endswith(f"in_proj_{kind}"):
                layer = name.removesuffix(f"in_proj_{kind}")
                chunks = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True)
                split |= {f"{layer}{part}.{kind}": chunk.clone() for part, chunk in chunks}
                break
        else:
            split[name] = tensor
    return split


def image_processor(files: OpenClipFiles) -> CLIPImageProcessor:
    """open_clip's preprocessing for evaluation as an image processor of transformers."""
    settings = files.preprocess_cfg
    size = settings.get("size") or files.model_cfg["vision_cfg"].get("image_size", 224)
    side = size if isinstance(size, int) else size[-1]
    square = {"height": side, "width": side}
    how, resampling = settings.get("resize_mode", "shortest"), settings.get("interpolation", "bicubic")
    if how not in ("shortest", "squash") or resampling not in _RESAMPLING:
        raise ValueError(
            f"{files.name} is preprocessed by resize_mode {how!r} and {resampling!r}; supported are shortest and"
            f" squash, {' and '.join(_RESAMPLING)}"
        )
    return CLIPImageProcessor(
        size={"shortest_edge": side} if how == "shortest" else square,
        do_center_crop=how == "shortest",
        crop_size=square,
        resample=_RESAMPLING[resampling],
        image_mean=list(settings.get("mean") or OPENAI_CLIP_MEAN),
        image_std=list(settings.get("std") or OPENAI_CLIP_STD),
    )


def _is_visual(name: str) -> bool:
    return name.removeprefix("module.").startswith("visual.")


def _in_folder_or_hub(place: str, name: str) -> OpenClipFiles | None:
    path = file_of(place, OPEN_CLIP_CONFIG)
    if path is None:
        return None
    description = json.loads(Path(path).read_text(encoding="utf-8"))

    def weights() -> str:
        for filename in WEIGHTS:
            if found := file_of(place, filename):
                return found
        raise ValueError(f"{name} has no weights of open_clip: none of {', '.join(WEIGHTS)}")

    return OpenClipFiles(name, description["model_cfg"], description.get("preprocess_cfg", {}), weights)


def _by_tag(architecture: str, tag: str) -> OpenClipFiles:
    try:
        import open_clip
    except ImportError as error:  # found, but it does not work here
        raise ImportError("this encoder is of the package open_clip: pip install open_clip_torch") from error
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise ValueError(
            f"{architecture}/{tag or '?'}: say which weights of open_clip's {architecture}:"
            f" {', '.join(f'{architecture}/{each}' for each in tags) or 'it has none'}"
        )
    settings = open_clip.get_pretrained_cfg(architecture, tag)

    def weights() -> str:
        return open_clip.download_pretrained(settings)

    model_cfg = open_clip.get_model_config(architecture)
    quick_gelu = settings.get("quick_gelu", model_cfg.get("quick_gelu", False))
    return OpenClipFiles(
        f"{architecture}/{tag}", {**model_cfg, "quick_gelu": quick_gelu}, dict(settings), weights
    )


def _source(path: str) -> EncoderSource | None:
    """open_clip's model of this name, or None where it is not open_clip's."""
    files = find_open_clip(path)
    if files is None:
        return None
    return EncoderSource(
        describe(files.model_cfg), partial(read_weights, files), partial(image_processor, files)
    )


FAMILIES[OpenClipVisionConfig.model_type] = VisionFamily(
    OpenClipVisionModel, lambda config: config.sequence_length
)
LIBRARIES.append(EncoderLibrary(is_architecture, _source))
