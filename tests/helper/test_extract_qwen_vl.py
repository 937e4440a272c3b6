"""Qwen-VL's encoder: extracted from shards as they were published, and checked against its equations.

The reference below is numpy in float64, over the published tensors and their published names; it shares no code
with the model.
"""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, PreTrainedConfig

from helper.extract_qwen_vl import main
from helper.qwen_vl_encoder import PREFIX
from utils.model.building import load_image_processor
from utils.model.pretrained_encoders import load_vision_tower
from utils.model.vision import encode_images

WIDTH, LAYERS, HEADS, MLP, OUTPUT, PATCH, SIDE, GRID = 24, 3, 4, 118, 256, 4, 24, 4
VISUAL = {
    "heads": HEADS,
    "image_size": SIDE,
    "image_start_id": 151857,
    "layers": LAYERS,
    "mlp_ratio": 4.9231,
    "output_dim": OUTPUT,
    "patch_size": PATCH,
    "width": WIDTH,
}
"""The published config.json's own fields; images of 6 x 6 patches over positions stored for 4 x 4."""


def published() -> dict[str, torch.Tensor]:
    """Random weights under the published names, without prefix."""
    shapes = {
        "positional_embedding": (GRID**2, WIDTH),
        "proj": (OUTPUT, OUTPUT),
        "conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "attn_pool.query": (GRID**2, OUTPUT),
        "attn_pool.pos_embed": (GRID**2, OUTPUT),
        "attn_pool.kv_proj.weight": (OUTPUT, WIDTH),
        "attn_pool.attn.in_proj_weight": (3 * OUTPUT, OUTPUT),
        "attn_pool.attn.in_proj_bias": (3 * OUTPUT,),
        "attn_pool.attn.out_proj.weight": (OUTPUT, OUTPUT),
        "attn_pool.attn.out_proj.bias": (OUTPUT,),
    }
    norms = {"ln_pre": WIDTH, "ln_post": OUTPUT, "attn_pool.ln_q": OUTPUT, "attn_pool.ln_kv": OUTPUT}
    for layer in range(LAYERS):
        block = f"transformer.resblocks.{layer}"
        norms |= {f"{block}.ln_1": WIDTH, f"{block}.ln_2": WIDTH}
        for name, (rows, columns) in {
            "attn.in_proj": (3 * WIDTH, WIDTH),
            "attn.out_proj": (WIDTH, WIDTH),
            "mlp.c_fc": (MLP, WIDTH),
            "mlp.c_proj": (WIDTH, MLP),
        }.items():
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_model(folder: Path, tensors: dict[str, torch.Tensor], kind: str, shards: int = 2) -> None:
    """A Qwen-VL: its visual tensors spread over shards between those of its decoder.

    The last shard holds the decoder alone, and is not there.
    """
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen", "visual": VISUAL}))
    names = sorted(tensors)
    weight_map = {"transformer.wte.weight": "absent", "lm_head.weight": "absent"}
    for number in range(shards):
        mine = {PREFIX + name: tensors[name] for name in names[number::shards]}
        mine[f"transformer.h.{number}.attn.c_proj.weight"] = torch.zeros(2, 2)
        filename = f"shard-{number}.{kind}"
        if kind == "bin":
            torch.save(mine, folder / filename)
        else:
            save_file(mine, folder / filename)
        weight_map |= dict.fromkeys(mine, filename)
    whole = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}[kind]
    (folder / f"{whole}.index.json").write_text(json.dumps({"weight_map": weight_map}))


# The published equations


def norm(x, weight, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * weight + bias


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cubic(distance):
    """Keys' kernel with a = -0.75, as bicubic interpolation in torch."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resized(positions, side):
    """Positions of a square grid at another size: pixel centres aligned, the border repeated."""
    old = math.isqrt(len(positions))
    matrix = np.zeros((side, old))
    for i in range(side):
        place = (i + 0.5) * old / side - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(j, 0), old - 1)] += cubic(place - j)
    grid = positions.reshape(old, old, -1)
    return np.einsum("ia,jb,abd->ijd", matrix, matrix, grid).reshape(side * side, -1)


def attention(q, k, v, heads):
    out = []
    for qh, kh, vh in zip(*(np.split(each, heads, axis=-1) for each in (q, k, v)), strict=True):
        out.append(softmax(qh @ kh.T / math.sqrt(qh.shape[-1])) @ vh)
    return np.concatenate(out, axis=-1)


def reference(tensors, image):
    """One image [3, H, W] -> [queries, OUTPUT]."""
    w = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    side = SIDE // PATCH
    patches = image.reshape(3, side, PATCH, side, PATCH).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    x = patches @ w["conv1.weight"].reshape(WIDTH, -1).T + resized(w["positional_embedding"], side)
    x = norm(x, w["ln_pre.weight"], w["ln_pre.bias"])
    erf = np.vectorize(math.erf)
    for layer in range(LAYERS):
        b = {name: w[f"transformer.resblocks.{layer}.{name}"] for name in BLOCK}
        mixed = (
            norm(x, b["ln_1.weight"], b["ln_1.bias"]) @ b["attn.in_proj.weight"].T + b["attn.in_proj.bias"]
        )
        mixed = mixed.reshape(len(x), HEADS, 3, -1)  # each head's query, key and value stand together
        q, k, v = (mixed[:, :, part].reshape(len(x), WIDTH) for part in range(3))
        x = x + attention(q, k, v, HEADS) @ b["attn.out_proj.weight"].T + b["attn.out_proj.bias"]
        h = norm(x, b["ln_2.weight"], b["ln_2.bias"]) @ b["mlp.c_fc.weight"].T + b["mlp.c_fc.bias"]
        h = h * (1 + erf(h / math.sqrt(2))) / 2
        x = x + h @ b["mlp.c_proj.weight"].T + b["mlp.c_proj.bias"]
    p = {name.removeprefix("attn_pool."): each for name, each in w.items() if name.startswith("attn_pool.")}
    x = norm(x @ p["kv_proj.weight"].T, p["ln_kv.weight"], p["ln_kv.bias"])
    queries = norm(p["query"], p["ln_q.weight"], p["ln_q.bias"]) + p["pos_embed"]
    inputs = (queries, x + resized(p["pos_embed"], side), x)
    weights, biases = np.split(p["attn.in_proj_weight"], 3), np.split(p["attn.in_proj_bias"], 3)
    q, k, v = (each @ m.T + c for each, m, c in zip(inputs, weights, biases, strict=True))
    out = attention(q, k, v, OUTPUT // 128) @ p["attn.out_proj.weight"].T + p["attn.out_proj.bias"]
    return norm(out, w["ln_post.weight"], w["ln_post.bias"])


BLOCK = [
    f"{part}.{kind}"
    for part in ("ln_1", "ln_2", "attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    for kind in ("weight", "bias")
]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_extracted_it_computes_the_published_equations(tmp_path, kind, capsys):
    tensors = published()
    write_model(tmp_path, tensors, kind)
    assert main(["--model", str(tmp_path), "--output", str(tmp_path / "vit")]) == 0
    assert "16 tokens of width 256 for a picture of 24 pixels" in capsys.readouterr().out
    tower = load_vision_tower(str(tmp_path / "vit"), torch.float64)
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hidden = encode_images(tower, images)
    expected = np.stack([reference(tensors, image.numpy()) for image in images])
    assert hidden.shape == (2, GRID**2, OUTPUT)
    # Positions are interpolated in float32, whatever the weights are in.
    np.testing.assert_allclose(hidden.detach().numpy(), expected, atol=2e-5)
    assert isinstance(AutoModel.from_pretrained(tmp_path / "vit"), type(tower))


def test_positions_of_the_stored_grid_are_taken_as_they_are(tmp_path, monkeypatch):
    """Then nothing is interpolated, and the equations hold to float64's precision."""
    monkeypatch.setitem(VISUAL, "image_size", GRID * PATCH)
    monkeypatch.setattr(f"{__name__}.SIDE", GRID * PATCH)
    tensors = published()
    write_model(tmp_path, tensors, "safetensors")
    assert main(["--model", str(tmp_path), "--output", str(tmp_path / "vit")]) == 0
    tower = load_vision_tower(str(tmp_path / "vit"), torch.float64)
    image = torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64)
    np.testing.assert_allclose(
        encode_images(tower, image)[0].detach().numpy(), reference(tensors, image[0].numpy()), atol=1e-11
    )


@pytest.mark.parametrize("crop", [False, True])
def test_preprocessing_is_clips_at_the_encoders_size(tmp_path, crop):
    write_model(tmp_path, published(), "safetensors")
    flags = ["--center_crop"] if crop else []
    assert main(["--model", str(tmp_path), "--output", str(tmp_path / "vit"), *flags]) == 0
    processor = load_image_processor(str(tmp_path / "vit"))
    assert processor.image_mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    picture = torch.zeros(3, SIDE, 2 * SIDE, dtype=torch.uint8)
    picture[:, :, : SIDE // 2] = 255  # a white stripe that cropping takes away
    pixels = processor(picture, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, SIDE, SIDE)
    assert (pixels[0, :, 0] > 0).all() != crop


def test_an_image_processor_of_another_size_is_refused(tmp_path):
    write_model(tmp_path, published(), "safetensors")
    main(["--model", str(tmp_path), "--output", str(tmp_path / "vit")])
    path = tmp_path / "vit" / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings["size"] = {"height": 16, "width": 16}
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="makes pictures of 16 pixels, but its encoder takes 24"):
        load_image_processor(str(tmp_path / "vit"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are Linux's to tell")
def test_reads_no_tensor_of_the_decoder(tmp_path):
    """Beside the visual tensors a shard holds 4 GB of the decoder's; they never come into memory."""
    write_model(tmp_path, published(), "safetensors", shards=1)
    path = tmp_path / "shard-0.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    end, more = len(content) - 8 - length, 4 * 2**30
    header["transformer.wte.weight"] = {"dtype": "U8", "shape": [more], "data_offsets": [end, end + more]}
    grown = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(grown)) + grown + content[8 + length :])
    with path.open("r+b") as file:
        file.truncate(8 + len(grown) + end + more)  # a hole: it takes no room on the disk

    def peak() -> int:
        (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in each)
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak()
    assert main(["--model", str(tmp_path), "--output", str(tmp_path / "vit")]) == 0
    assert peak() - before < 2**30


def spoil(tensors, how):
    if how == "missing":
        del tensors["ln_post.bias"]
    elif how == "unknown":
        tensors["transformer.resblocks.0.gate"] = torch.zeros(1)
    else:
        tensors["conv1.weight"] = torch.zeros(WIDTH, 3, PATCH, PATCH + 1)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "1 missing (resampler.norm.bias)"),
        ("unknown", "1 unknown (transformer.resblocks.0.gate)"),
        ("other", "1 of another shape (embeddings.patches.weight)"),
    ],
)
def test_tensors_that_are_not_the_published_ones_are_named(tmp_path, capsys, how, message):
    tensors = published()
    spoil(tensors, how)
    write_model(tmp_path, tensors, "safetensors")
    assert main(["--model", str(tmp_path), "--output", str(tmp_path / "vit")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "vit").exists()


def test_what_cannot_be_extracted_is_told_in_a_line(tmp_path, capsys):
    def told(*flags):
        assert main(["--model", str(tmp_path), "--output", str(tmp_path / "vit"), *flags]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
        return err

    PreTrainedConfig().save_pretrained(tmp_path)
    assert "is no Qwen-VL: its config.json describes no visual encoder" in told()
    (tmp_path / "config.json").write_text(json.dumps({"visual": VISUAL}))
    assert "has no model.safetensors(.index.json) or pytorch_model.bin(.index.json)" in told()
    write_model(tmp_path, published(), "safetensors")
    (tmp_path / "shard-1.safetensors").unlink()
    assert "has no shard-1.safetensors, which holds transformer.visual." in told()
    (tmp_path / "vit").mkdir()
    assert "vit exists already" in told()
