"""Datasets: from records on disk to batches. `build_dataset` is the way in.

What is named here is imported when it is asked for: reading a batch does not need what makes one.
"""
# ruff: noqa: F401

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.data.bad_records import BadDataError, BadRecord, BadRecords
    from utils.data.batching.batch import IGNORED_LABEL, Batch, Collator, Sample
    from utils.data.batching.encode import CutCount, EncodedDataset
    from utils.data.batching.packing import PackedDataset
    from utils.data.mixing.mixture import Mixture, build_dataset, split_dataset
    from utils.data.registry import DATASETS, register_dataset
    from utils.data.spec import DataError

_PLACES = {
    "bad_records": ("BadDataError", "BadRecord", "BadRecords"),
    "batching.encode": ("CutCount", "EncodedDataset"),
    "batching.packing": ("PackedDataset",),
    "batching.batch": ("IGNORED_LABEL", "Batch", "Collator", "Sample"),
    "mixing.mixture": ("Mixture", "build_dataset", "split_dataset"),
    "registry": ("DATASETS", "register_dataset"),
    "spec": ("DataError",),
}


def __getattr__(name: str) -> Any:
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{place}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
