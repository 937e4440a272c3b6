"""timm's families as encoders: what is read is what timm computes, also where ZeRO-3 shares out the weights."""

import pytest
import torch

from tests.ranks import run_ranks
from utils.model.open_clip_vision import describe
from utils.model.pretrained_encoders import load_vision_tower, vision_config_of
from utils.model.vision import encode_images

# side of the images, how timm lays out what comes last, tokens, width; worked out from strides and channels
FAMILIES = {
    "vit_tiny_patch16_224": (224, "NLC", 14 * 14 + 1, 192),
    "mobilenetv3_small_100": (64, "NCHW", 2 * 2, 1024),
    "swin_tiny_patch4_window7_224": (224, "NHWC", 7 * 7, 768),
    "eva02_tiny_patch14_224": (224, "NLC", 16 * 16 + 1, 192),
    "resnet18": (64, "NCHW", 2 * 2, 512),
    "tf_efficientnet_lite0": (64, "NCHW", 2 * 2, 1280),
    "convnext_atto": (64, "NCHW", 2 * 2, 320),
    "vitamin_small_224": (224, "NLC", 14 * 14, 384),
    "swinv2_cr_tiny_ns_224": (224, "NCHW", 7 * 7, 768),
    "sequencer2d_s": (224, "NHWC", 16 * 16, 384),
    "levit_128s": (224, "NLC", 4 * 4, 384),
    "samvit_base_patch16": (224, "NCHW", 14 * 14, 256),
}
QUICK = list(FAMILIES)[:4]  # of every layout; buffers that are not saved; initialisation that ZeRO-3 disturbs
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def write(folder, writer, name):
    """A model of open_clip around one of timm; returns what timm computes, [N, S, D], for two images, and these."""
    size, layout, _, _ = FAMILIES[name]
    tower = {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    }
    text = {"context_length": 4, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1}
    folder.mkdir(exist_ok=True)
    model_cfg = {"embed_dim": 24, "vision_cfg": {**tower, "image_size": size}, "text_cfg": text}
    trunk = writer(folder, model_cfg).visual.trunk
    trunk.reset_classifier(0, "")
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = trunk(pixels)
    return {"NLC": out, "NHWC": out.flatten(1, 2), "NCHW": out.flatten(2).mT}[layout], pixels


@pytest.mark.parametrize("name", EACH)
def test_each_family_is_read_as_timm_computes_it(name, open_clip_writer, tmp_path):
    wanted, pixels = write(tmp_path, open_clip_writer, name)
    config = vision_config_of(str(tmp_path))
    _, _, tokens, width = FAMILIES[name]
    assert (config.sequence_length, config.hidden_size) == (tokens, width) == tuple(wanted.shape[1:])
    found = encode_images(load_vision_tower(str(tmp_path)), pixels)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_what_gives_no_tokens_is_refused():
    """CrossViT has two branches of tokens, which it pools by itself."""
    tower = {
        "timm_model_name": "crossvit_tiny_240",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 240,
    }
    with pytest.raises(ValueError, match="CrossVit of timm does not work without pooling"):
        describe({"embed_dim": 24, "vision_cfg": tower})


WORKER = """
import json, sys, deepspeed, torch
from transformers.integrations import HfDeepSpeedConfig
from utils.model.pretrained_encoders import load_vision_tower
from utils.model.vision import encode_images

deepspeed.init_distributed("gloo")
settings = {"train_batch_size": 1, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
alive = HfDeepSpeedConfig(settings)
for folder in sys.argv[1:]:
    print(folder, flush=True)
    wanted, pixels = torch.load(folder + "/wanted.pt")
    tower = load_vision_tower(folder)
    parameters = list(tower.parameters())
    assert all(parameter.numel() == 0 for parameter in parameters)
    with deepspeed.zero.GatheredParameters(parameters):
        torch.testing.assert_close(encode_images(tower, pixels), wanted, atol=1e-4, rtol=1e-4)
"""


@pytest.mark.slow
def test_each_family_is_shared_out_by_zero_3(open_clip_writer, tmp_path):
    """timm initialises a layer's weights once more when those around it are built."""
    folders = []
    for name in (*QUICK, "resnet18", "tf_efficientnet_lite0", "vitamin_small_224"):
        torch.save(write(tmp_path / name, open_clip_writer, name), tmp_path / name / "wanted.pt")
        folders.append(str(tmp_path / name))
    codes, printed = run_ranks(["-c", WORKER, *folders], 1, tmp_path, seconds=600)
    assert codes == [0], printed
