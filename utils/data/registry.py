"""The datasets that `--dataset_names` knows, a row each; those that plugins register, and files of the user's own."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.data.adapters.captions import coco_caption, minigpt4
from utils.data.adapters.custom import custom
from utils.data.adapters.llava import llava, llava_dial
from utils.data.adapters.mimicit import (
    llava_otter_blend,
    otter_mimicit,
    otter_mimicit_cgd,
    pairs_with_partners,
    related_instructions,
    stored_image_ids,
)
from utils.data.adapters.sparkles import sparkles_dialogue
from utils.data.adapters.vqa import aokvqa, ocr_vqa
from utils.data.readers.json_stream import parquet_files
from utils.data.spec import DataError, DatasetSpec, Part

_COCO = "http://images.cocodataset.org/zips"
_LLAVA = "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K"
_MIMIC_IT = "https://huggingface.co/datasets/pufanyi/MIMICIT"
_CC_SBU = "https://huggingface.co/datasets/Vision-CAIR/cc_sbu_align"
_OCR_VQA = "https://ocr-vqa.github.io"
_SPARKLES = "https://github.com/HYPJUDY/Sparkles"

_COCO_2017 = Part("coco/train2017", f"{_COCO}/train2017.zip")
_COCO_2014 = Part(
    "coco/2014", f"{_COCO}/train2014.zip and {_COCO}/val2014.zip, all images in this one folder"
)
_DETAIL = Part("llava/detail_23k.json", _LLAVA)
_REASONING = Part("llava/complex_reasoning_77k.json", _LLAVA)
_DIALOGUES = Part("llava/conversation_58k.json", _LLAVA)
_CGD = Part("MIMIC-IT/CGD_instructions.json", _MIMIC_IT, key="data")


def _mimicit_with_store(letters: str) -> DatasetSpec:
    """SD, SN, TVC and VST: pictures in one file beside the instructions, of which later releases are parquet."""
    store = Part(
        f"MIMIC-IT/{letters}.json",
        _MIMIC_IT,
        is_store=True,
        alternatives=tuple(f"MIMIC-IT/{letters}{end}" for end in (".parquet", "_images.parquet", "_Images")),
    )
    return DatasetSpec(
        name=f"otter_mimicit_{letters.lower()}",
        annotations=(Part(f"MIMIC-IT/{letters}_instructions.json", _MIMIC_IT, key="data"),),
        images=(store,),
        adapter=otter_mimicit,
        arrange=related_instructions,
        image_names=stored_image_ids,
    )


_ROWS = (
    DatasetSpec(
        name="aokvqa",
        annotations=(
            Part("aokvqa/annotations/aokvqa_v1p0_train.json", "https://allenai.org/project/a-okvqa/home"),
        ),
        images=(_COCO_2017,),
        adapter=aokvqa,
    ),
    DatasetSpec(
        name="coco_caption",
        annotations=(
            Part(
                "coco_caption/dataset.json",
                "https://cs.stanford.edu/people/karpathy/deepimagesent/coco.zip",
                key="images",
            ),
        ),
        images=(_COCO_2014,),
        adapter=coco_caption,
    ),
    DatasetSpec(
        name="llava",
        annotations=(_DETAIL, _REASONING),
        images=(_COCO_2017,),
        adapter=llava,
    ),
    DatasetSpec(
        name="llava_dial",
        annotations=(_DIALOGUES,),
        images=(_COCO_2017,),
        adapter=llava_dial,
    ),
    DatasetSpec(
        name="llava_otter_blend",
        annotations=(_CGD, _DETAIL, _REASONING, _DIALOGUES),
        images=(_COCO_2017,),
        adapter=llava_otter_blend,
        arrange=pairs_with_partners,
    ),
    DatasetSpec(
        name="minigpt4",
        annotations=(Part("cc_sbu_align/filter_cap.json", _CC_SBU, key="annotations"),),
        images=(Part("cc_sbu_align/image", _CC_SBU),),
        adapter=minigpt4,
    ),
    DatasetSpec(
        name="ocr_vqa",
        annotations=(Part("OCR_VQA/dataset.json", _OCR_VQA),),
        images=(Part("OCR_VQA/images", _OCR_VQA),),
        adapter=ocr_vqa,
    ),
    DatasetSpec(
        name="otter_mimicit_cgd",
        annotations=(_CGD,),
        images=(_COCO_2017,),
        adapter=otter_mimicit_cgd,
        arrange=related_instructions,
    ),
    *(_mimicit_with_store(letters) for letters in ("SD", "SN", "TVC", "VST")),
    DatasetSpec(
        name="sparkles_dialogue",
        annotations=tuple(
            Part(f"SparklesDialogue{part}/annotations/SparklesDialogue{part}.json", _SPARKLES)
            for part in ("CC", "VG")
        ),
        images=tuple(Part(f"SparklesDialogue{part}/images", _SPARKLES) for part in ("CC", "VG")),
        adapter=sparkles_dialogue,
    ),
)

DATASETS: dict[str, DatasetSpec] = {row.name: row for row in _ROWS}


def register_dataset(spec: DatasetSpec) -> None:
    """Let `--dataset_names` know one more dataset; call it in a module that `--plugin` names.

    Raises `DataError` for a name that is taken, or that reads as a file's path.
    """
    known = DATASETS.get(spec.name)
    if known is not None and known != spec:
        raise DataError(f"there is a dataset {spec.name} already; register yours under another name")
    if _is_own(spec.name):
        raise DataError(f"{spec.name} would be taken for the path of a file; register it under another name")
    DATASETS[spec.name] = spec


_OWN_ENDINGS = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz", ".parquet")
_OWN_KINDS = (
    ".json, .jsonl or .ndjson (each also as .gz), .parquet,"
    " a folder of .parquet files or one that `datasets` saved"
)
_SAVED_FOLDER = ("state.json", "dataset_dict.json")  # what `datasets` writes into the folders it saves


def find_specs(names: Sequence[str], image_folder: str | Path | None = None) -> list[DatasetSpec]:
    """The rows of `names`, and a row of its own for each path of a file of records.

    A file of one's own ends in .json, .jsonl, .ndjson (or these and .gz) or .parquet, or is a folder of .parquet
    files or one that `datasets` has saved; it is taken as given, or below the data folder. Its pictures are below
    `image_folder`, without that beside it.

    Raises `DataError` for a name that is unknown or given twice, for a path of another kind, and for an image
    folder that nothing uses.
    """
    if not names:
        raise DataError(f"no dataset was named; the known ones are: {', '.join(sorted(DATASETS))}")
    own = [name for name in names if name not in DATASETS and _is_own(name)]
    unknown = [name for name in names if name not in DATASETS and name not in own]
    if other := [name for name in unknown if os.path.exists(name)]:
        raise DataError(
            f"unknown dataset {', '.join(other)}: it exists, but is not of a kind that can be read:"
            f" {_OWN_KINDS}"
        )
    if unknown:
        raise DataError(
            f"unknown dataset {', '.join(unknown)}; the known ones are: {', '.join(sorted(DATASETS))};"
            f" to use your own data, give a path ({_OWN_KINDS}), or --plugin with the module that registers it"
        )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(
            f"{', '.join(twice)} is named more than once in --dataset_names; name each dataset once"
        )
    if image_folder is not None and not own:
        raise DataError(
            "--image_folder is for data of your own, but --dataset_names has no path of a file; leave it out"
        )
    return [_own_row(name, image_folder) if name in own else DATASETS[name] for name in names]


def require_files(specs: Sequence[DatasetSpec], data_path: Path) -> None:
    """Raises `DataError` that names every file and folder of `specs` that is missing, and where to get it."""
    missing = {part.path: part.wanted(data_path) for spec in specs for part in spec.missing(data_path)}
    if missing:
        raise DataError(
            f"{len(missing)} parts of the datasets are missing: {'; '.join(missing.values())}. Put them there, or"
            " set --data_path"
        )


def _is_own(name: str) -> bool:
    path = Path(name)
    return (
        name.lower().endswith(_OWN_ENDINGS)
        or any((path / file).is_file() for file in _SAVED_FOLDER)
        or (path.is_dir() and bool(parquet_files(path)))
    )


def _own_row(name: str, image_folder: str | Path | None) -> DatasetSpec:
    file = _own_part(name)
    # Beside the file wherever that was found: the folder's own name may be there twice, "." always is.
    images = replace(file, is_beside=True) if image_folder is None else _own_part(image_folder)
    return DatasetSpec(name=name, annotations=(file,), images=(images,), adapter=custom)


def _own_part(path: str | Path) -> Part:
    return Part(str(path), "", alternatives=(str(Path(path).absolute()),))
