"""Where open_clip's models lie, and reading from them what an encoder needs: description, weights, preprocessing.

A name is open_clip's where it is
- `local-dir:FOLDER` or `hf-hub:ORGANISATION/NAME`, which are open_clip's own ways to say so;
- `ARCHITECTURE/TAG`, an architecture of open_clip with the tag of its weights: `ViT-bigG-14/laion2b_s39b_b160k`;
- a folder or a hub name that holds `open_clip_config.json` and no encoder in transformers' form.

Of the weights only the encoder's (`visual.*`) are read.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import CLIPImageProcessor
from transformers.image_utils import PILImageResampling

from .attention_blocks import split_in_projections
from .pretrained_encoders import OPEN_CLIP_CONFIG, PREFIXES, file_of

WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_RESAMPLING = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


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
    architecture, _, tag = name.partition("/")
    if not Path(name).exists() and _is_architecture(architecture):
        return _by_tag(architecture, tag)
    return _in_folder_or_hub(name, name)


def is_architecture(name: str) -> bool:
    """Whether a name without folder is ARCHITECTURE or ARCHITECTURE/TAG of open_clip."""
    return not Path(name).exists() and _is_architecture(name.partition("/")[0])


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
        image_mean=list(settings.get("mean") or _CLIP_MEAN),
        image_std=list(settings.get("std") or _CLIP_STD),
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


def _is_architecture(name: str) -> bool:
    """Told by open_clip's own files of descriptions, for importing it takes seconds."""
    package = find_spec("open_clip")
    if package is None or package.origin is None or not name:
        return False
    return (Path(package.origin).parent / "model_configs" / f"{name}.json").is_file()


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
