"""Datasets: from records on disk to batches. `build_dataset` is the way in."""

from utils.data.bad_records import BadDataError, BadRecord, BadRecords
from utils.data.batching.collator import Collator
from utils.data.batching.encode import CutCount, EncodedDataset
from utils.data.batching.packing import PackedDataset
from utils.data.batching.sample import IGNORED_LABEL, Batch, Sample
from utils.data.mixing.mixture import Mixture, build_dataset, split_dataset
from utils.data.registry import DATASETS, register_dataset
from utils.data.spec import DataError

__all__ = [
    "DATASETS",
    "IGNORED_LABEL",
    "BadDataError",
    "BadRecord",
    "BadRecords",
    "Batch",
    "Collator",
    "CutCount",
    "DataError",
    "EncodedDataset",
    "Mixture",
    "PackedDataset",
    "Sample",
    "build_dataset",
    "register_dataset",
    "split_dataset",
]
