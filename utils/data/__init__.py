"""Datasets: from records on disk to batches. `build_dataset` is the way in."""

from utils.data.collator import Collator
from utils.data.encode import CutCount, EncodedDataset
from utils.data.mixture import Mixture, build_dataset, split_dataset
from utils.data.registry import DATASETS
from utils.data.spec import DataError

__all__ = [
    "DATASETS",
    "Collator",
    "CutCount",
    "DataError",
    "EncodedDataset",
    "Mixture",
    "build_dataset",
    "split_dataset",
]
