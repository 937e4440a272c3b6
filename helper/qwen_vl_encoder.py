"""Extracts Qwen-VL's visual encoder from the published model; `helper.extract_qwen_vl` is the command."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from transformers import CLIPImageProcessor
from transformers.utils import cached_file

from utils.atomic import atomic_directory
from utils.model import QwenVisionConfig
from utils.model.pretrained_encoders import file_of
from utils.model.qwen_vit import QwenVisionModel

PREFIX = "transformer.visual."
NOT_TAKEN = "proj"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_HEAD_WIDTH = 128  # of the resampler, in all published sizes
_NAMES = (
    (r"conv1\.", "embeddings.patches."),
    (r"positional_embedding$", "embeddings.positions"),
    (r"ln_pre\.", "embeddings.norm."),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"transformer\.resblocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"encoder.layers.\1.mlp.fc1."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"encoder.layers.\1.mlp.fc2."),
    (r"attn_pool\.query$", "resampler.queries"),
    (r"attn_pool\.pos_embed$", "resampler.positions"),
    (r"attn_pool\.kv_proj\.", "resampler.project."),
    (r"attn_pool\.ln_kv\.", "resampler.norm_tokens."),
    (r"attn_pool\.ln_q\.", "resampler.norm_queries."),
    (r"attn_pool\.attn\.", "resampler.attention."),
    (r"ln_post\.", "resampler.norm."),
)


class ExtractionError(ValueError):
    """The model is not a Qwen-VL as it was published; the message is one line and says what differs."""


def extract(model: str, output: Path, center_crop: bool = False) -> QwenVisionConfig:
    """Write the encoder of `model` (a folder or hub name) to the new folder `output`.

    Raises `ExtractionError` where the model differs from the published one, `FileExistsError` where `output`
    is there already, and `OSError` where a file is missing.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists already: remove it, or name another folder")
    shape = _published_shape(model)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in _read_tensors(model, PREFIX):
        if name != PREFIX + NOT_TAKEN:
            state |= _renamed(name.removeprefix(PREFIX), tensor, int(shape["heads"]))
    config = _config(shape, state)
    _refuse_misfits(model, config, state)
    with atomic_directory(output) as folder:
        save_torch_state_dict(state, str(folder), filename_pattern="model{suffix}.safetensors")
        config.dtype = next(iter(state.values())).dtype
        config.architectures = [QwenVisionModel.__name__]
        config.save_pretrained(folder)
        image_processor(config.image_size, center_crop).save_pretrained(folder)
    return config


def image_processor(side: int, center_crop: bool) -> CLIPImageProcessor:
    """CLIP's mean, deviation and bicubic scaling, at the encoder's size."""
    square = {"height": side, "width": side}
    return CLIPImageProcessor(
        size={"shortest_edge": side} if center_crop else square, do_center_crop=center_crop, crop_size=square
    )


def _published_shape(model: str) -> dict[str, float]:
    path = cached_file(model, "config.json")
    fields = json.loads(Path(path).read_text(encoding="utf-8"))
    wanted = ("image_size", "patch_size", "width", "layers", "heads", "mlp_ratio", "output_dim")
    shape = fields.get("visual") or {}
    if missing := [name for name in wanted if name not in shape]:
        raise ExtractionError(
            f"{model} is no Qwen-VL: its config.json describes no visual encoder with {', '.join(missing)}"
        )
    return shape


def _renamed(name: str, tensor: torch.Tensor, heads: int) -> dict[str, torch.Tensor]:
    """One published tensor under our names; queries, keys and values, published in one, apart."""
    ours = name
    for pattern, replacement in _NAMES:
        ours, hits = re.subn("^" + pattern, replacement, name)
        if hits:
            break
    if ".in_proj" not in ours:
        return {ours: tensor}
    layer, kind = re.split(r"in_proj[._]", ours)
    if ours.startswith("encoder."):  # each head's query, key and value stand together
        parts = tensor.unflatten(0, (heads, 3, -1)).unbind(1)
        parts = [part.flatten(0, 1) for part in parts]
    else:
        parts = tensor.chunk(3)
    return {f"{layer}{part}_proj.{kind}": each.clone() for part, each in zip("qkv", parts, strict=True)}


def _config(shape: dict[str, float], state: dict[str, torch.Tensor]) -> QwenVisionConfig:
    grids = {}
    for field, name in (("position_grid", "embeddings.positions"), ("query_grid", "resampler.queries")):
        if name in state:  # where it is missing, that is told with all that is
            grids[field] = math.isqrt(state[name].shape[0])
    return QwenVisionConfig(
        image_size=shape["image_size"],
        patch_size=shape["patch_size"],
        hidden_size=shape["width"],
        intermediate_size=int(shape["width"] * shape["mlp_ratio"]),
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        output_size=shape["output_dim"],
        resampler_heads=shape["output_dim"] // _HEAD_WIDTH,
        **grids,
    )


def _refuse_misfits(model: str, config: QwenVisionConfig, state: dict[str, torch.Tensor]) -> None:
    """`ExtractionError` naming what is missing, unknown or of another shape than the configuration says."""
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in QwenVisionModel(config).state_dict().items()}
    found = {
        "missing": wanted.keys() - state.keys(),
        "unknown": state.keys() - wanted.keys(),
        "of another shape": {
            name for name in wanted.keys() & state.keys() if wanted[name] != state[name].shape
        },
    }
    told = [f"{len(names)} {kind} ({', '.join(sorted(names)[:3])})" for kind, names in found.items() if names]
    if told:
        raise ExtractionError(f"the visual tensors of {model} are not Qwen-VL's: {'; '.join(told)}")


def _read_tensors(model: str, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's tensors whose names begin with `prefix`, one at a time, in their own types.

    Safetensors are preferred to pickled files; files without such a tensor are not even fetched. Raises
    `FileNotFoundError` if a file that is needed is missing, `ValueError` if a tensor is.
    """
    needed: dict[str, list[str]] = {}
    for name, filename in _file_of_each(model).items():
        if name.startswith(prefix):
            needed.setdefault(filename, []).append(name)
    for filename, names in sorted(needed.items()):
        path = file_of(model, filename)
        if path is None:
            raise FileNotFoundError(f"{model} has no {filename}, which holds {names[0]}: fetch it")
        with _opened(path) as (held, get):
            if missing := set(names) - set(held):
                raise ValueError(f"{filename} of {model} lacks {sorted(missing)[0]}: fetch it again")
            for name in names:
                yield name, get(name)


def _file_of_each(model: str) -> dict[str, str]:
    """The file of each tensor, by a model's index or, if its weights are one file, by what that holds."""
    for whole in _WHOLE:
        if index := file_of(model, f"{whole}.index.json"):
            return json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        if path := file_of(model, whole):
            with _opened(path) as (names, _):
                return dict.fromkeys(names, whole)
    wanted = " or ".join(f"{whole}(.index.json)" for whole in _WHOLE)
    raise FileNotFoundError(f"{model} has no {wanted}: give the folder or hub name of a whole model")


@contextmanager
def _opened(path: str) -> Iterator[tuple[list[str], Callable[[str], torch.Tensor]]]:
    """A file of weights as its names and a way to read one; mapped into memory, not loaded."""
    if path.endswith(".safetensors"):
        with safe_open(path, "pt") as held:
            yield list(held.keys()), held.get_tensor
    else:
        pickled = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        yield list(pickled), lambda name: pickled[name].clone()
