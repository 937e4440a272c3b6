"""Tiny random decoders, encoders and tokenizers, saved as ordinary Hugging Face folders."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.tiny import SHAPE, clip_config, write_llama, write_tokenizer
from utils.model import QwenVisionConfig
from utils.model.qwen_vit import QwenVisionModel

REGISTERED = {
    name: (AttentionInterface()[name], AttentionMaskInterface()[name]) for name in ("mmca", "cross")
}


@pytest.fixture(autouse=True)
def own_attention() -> None:
    """The project's, where a checkpoint's own copy of the code has registered itself."""
    for name, (function, mask) in REGISTERED.items():
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, mask)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """A decoder with its tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder, write_tokenizer(folder))
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A whole CLIP, text encoder included, with its image processor."""
    folder = tmp_path_factory.mktemp("clip")
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=20
    )
    torch.manual_seed(1)
    parts = dict(text_config=text.to_dict(), vision_config=clip_config().to_dict())
    CLIPModel(CLIPConfig(**parts, projection_dim=16)).save_pretrained(folder)
    side = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(llama_folder, clip_folder) -> tuple[str, str]:
    """Decoder and encoder, as models are built of them."""
    return str(llama_folder), str(clip_folder)


OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 28,
        "layers": 2,
        "width": 52,
        "head_width": 13,
        "mlp_ratio": 4.9231,
        "patch_size": 14,
    },
    "text_cfg": {"context_length": 4, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1},
}
"""ViT-bigG-14 made small: heads of an odd width, an MLP of no whole multiple; four tokens and the class token."""


def write_open_clip(folder: Path, model_cfg: dict | None = None, **preprocessing) -> torch.nn.Module:
    """An OpenCLIP model with random weights in open_clip's own form on the hub; returns the model."""
    from open_clip.model import CLIP  # here: it takes seconds

    model_cfg = model_cfg or OPEN_CLIP
    torch.manual_seed(2)
    model = CLIP(**model_cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, which start at 0 and 1
            parameter.add_(0.1 * torch.randn_like(parameter))
    description = {"model_cfg": model_cfg, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


@pytest.fixture
def open_clip_config() -> dict:
    """The small OpenCLIP model's description."""
    return copy.deepcopy(OPEN_CLIP)


@pytest.fixture(scope="session")
def open_clip_writer() -> Callable[..., torch.nn.Module]:
    return write_open_clip


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory) -> Path:
    """An OpenCLIP model, text encoder included, in open_clip's own form."""
    folder = tmp_path_factory.mktemp("open_clip")
    write_open_clip(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_folders(tmp_path_factory, clip_folder, open_clip_folder) -> dict[str, Path]:
    """A small encoder of each family."""
    torch.manual_seed(0)
    siglip, qwen_vl = tmp_path_factory.mktemp("siglip"), tmp_path_factory.mktemp("qwen_vl")
    shape = SHAPE.copy()
    SiglipVisionModel(SiglipVisionConfig(**shape, image_size=16, patch_size=8)).save_pretrained(siglip)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(siglip)
    sizes = dict(
        image_size=24, patch_size=4, position_grid=3, query_grid=2, output_size=48, resampler_heads=4
    )
    QwenVisionModel._from_config(QwenVisionConfig(**shape, **sizes)).save_pretrained(qwen_vl)
    square = {"height": 24, "width": 24}
    CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False).save_pretrained(qwen_vl)
    folders = {"clip": clip_folder, "open_clip": open_clip_folder, "siglip": siglip, "qwen_vl": qwen_vl}
    folders |= {name: tmp_path_factory.mktemp(name) for name in ("siglip2_naflex", "dinov2", "dinov3")}
    naflex = Siglip2VisionConfig(**shape, num_patches=9, patch_size=8)
    Siglip2VisionModel(naflex).save_pretrained(folders["siglip2_naflex"])
    Siglip2ImageProcessor(patch_size=8, max_num_patches=9).save_pretrained(folders["siglip2_naflex"])
    del shape["intermediate_size"]
    # As published, a DINOv2 pretrained on larger images than its processor makes.
    Dinov2Model(Dinov2Config(**shape, image_size=40, patch_size=8)).save_pretrained(folders["dinov2"])
    dinov3 = DINOv3ViTConfig(
        **shape, intermediate_size=64, image_size=32, patch_size=8, num_register_tokens=2
    )
    DINOv3ViTModel(dinov3).save_pretrained(folders["dinov3"])
    square = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 20}, crop_size=square).save_pretrained(folders["dinov2"])
    SiglipImageProcessor(size=square).save_pretrained(folders["dinov3"])
    return folders
