"""Tensors of a model's folder or hub repository by name, one at a time, without reading the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import cached_file

_WHOLE = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class ShardedWeights:
    """Which file of a model holds which tensor; safetensors are preferred to pickled ones."""

    model: str
    file_of: dict[str, str]

    @classmethod
    def of(cls, model: str) -> ShardedWeights:
        """Read a model's index, or, where its weights are one file, what that holds.

        Raises `FileNotFoundError` where there is neither.
        """
        for whole in _WHOLE:
            if index := _fetch(model, f"{whole}.index.json"):
                return cls(model, json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"])
            if path := _fetch(model, whole):
                with _opened(path) as (names, _):
                    return cls(model, dict.fromkeys(names, whole))
        wanted = " or ".join(f"{whole}(.index.json)" for whole in _WHOLE)
        raise FileNotFoundError(f"{model} has no {wanted}: give the folder or hub name of a whole model")

    def read(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors whose names are wanted, in their own types; files without any are not even fetched.

        Raises `FileNotFoundError` where a file that is needed is missing, `ValueError` where a tensor is.
        """
        needed: dict[str, list[str]] = {}
        for name, filename in self.file_of.items():
            if wanted(name):
                needed.setdefault(filename, []).append(name)
        for filename, names in sorted(needed.items()):
            path = _fetch(self.model, filename)
            if path is None:
                raise FileNotFoundError(f"{self.model} has no {filename}, which holds {names[0]}: fetch it")
            with _opened(path) as (held, get):
                if missing := set(names) - set(held):
                    raise ValueError(f"{filename} of {self.model} lacks {sorted(missing)[0]}: fetch it again")
                for name in names:
                    yield name, get(name)


@contextmanager
def _opened(path: str) -> Iterator[tuple[list[str], Callable[[str], torch.Tensor]]]:
    """A file of weights as its names and a way to read one; mapped into memory, not loaded."""
    if path.endswith(".safetensors"):
        with safe_open(path, "pt") as held:
            yield list(held.keys()), held.get_tensor
    else:
        pickled = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        yield list(pickled), lambda name: pickled[name].clone()


def _fetch(model: str, filename: str) -> str | None:
    return cached_file(
        model,
        filename,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
