"""The datasets that `--dataset_names` knows."""

from collections.abc import Sequence
from pathlib import Path

from utils.data.adapters.llava import llava, llava_dial
from utils.data.spec import DataError, DatasetSpec, Part

_LLAVA_ORIGIN = "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K"
_COCO_2017 = Part("coco/train2017", "http://images.cocodataset.org/zips/train2017.zip")

_ROWS = (
    DatasetSpec(
        name="llava",
        annotations=(
            Part("llava/detail_23k.json", _LLAVA_ORIGIN),
            Part("llava/complex_reasoning_77k.json", _LLAVA_ORIGIN),
        ),
        images=(_COCO_2017,),
        adapter=llava,
    ),
    DatasetSpec(
        name="llava_dial",
        annotations=(Part("llava/conversation_58k.json", _LLAVA_ORIGIN),),
        images=(_COCO_2017,),
        adapter=llava_dial,
    ),
)

DATASETS: dict[str, DatasetSpec] = {row.name: row for row in _ROWS}


def find_specs(names: Sequence[str]) -> list[DatasetSpec]:
    """The rows of `names`; raises `DataError` for a name that is unknown or given twice."""
    if not names:
        raise DataError(f"no dataset was named; the known ones are: {', '.join(sorted(DATASETS))}")
    unknown = [name for name in names if name not in DATASETS]
    if unknown:
        raise DataError(
            f"unknown dataset {', '.join(unknown)}; the known ones are: {', '.join(sorted(DATASETS))}"
        )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(
            f"{', '.join(twice)} is named more than once in --dataset_names; name each dataset once"
        )
    return [DATASETS[name] for name in names]


def require_files(specs: Sequence[DatasetSpec], data_path: Path) -> None:
    """Raises `DataError` that names every file and folder of `specs` that is missing, and where to get it."""
    missing = {part.path: part.origin for spec in specs for part in spec.missing(data_path)}
    if missing:
        listed = "; ".join(f"{data_path / path} (from {origin})" for path, origin in missing.items())
        raise DataError(
            f"{len(missing)} parts of the datasets are missing: {listed}. Put them there, or set --data_path"
        )
