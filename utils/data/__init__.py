"""Datasets: from records on disk to batches. `build_dataset` is the way in."""

from utils.data.bad_data import BadDataError, BadRecord, BadRecords
from utils.data.collator import Collator
from utils.data.encode import CutCount, EncodedDataset
from utils.data.mixture import Mixture, build_dataset, split_dataset
from utils.data.packed import PackedDataset
from utils.data.registry import DATASETS
from utils.data.spec import DataError
from utils.data.tolerant import TolerantDataset

__all__ = [
    "DATASETS",
    "BadDataError",
    "BadRecord",
    "BadRecords",
    "Collator",
    "CutCount",
    "DataError",
    "EncodedDataset",
    "Mixture",
    "PackedDataset",
    "TolerantDataset",
    "build_dataset",
    "split_dataset",
]
