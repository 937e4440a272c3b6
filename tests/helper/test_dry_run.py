"""The table of datasets names what is there, and where."""

from argparse import Namespace
from pathlib import Path

from helper.dry_run import dataset_table
from utils.data.registry import find_specs


def files(data_path: Path, *names: str, image_folder: str | None = None) -> list[tuple[str, str]]:
    flags = Namespace(
        data_path=data_path, dataset_samples=["all"], dataset_concatenate_samples=[1], dataset_weights=[1.0]
    )
    columns = dataset_table(find_specs(names, image_folder), flags).columns
    return list(zip(*(column.cells for column in columns[-2:]), strict=True))


def test_pictures_are_shown_where_they_are(tmp_path: Path) -> None:
    own = tmp_path / "mine" / "my.json"
    data = tmp_path / "data"
    assert files(data, str(own)) == [(f"{own} (missing)", f"beside {own} (missing)")]
    own.parent.mkdir()
    own.write_text("[]")
    assert files(data, str(own)) == [(f"{own} (0.0 MB)", f"{own.parent}/")]
    (data / "pictures").mkdir(parents=True)
    assert files(data, str(own), image_folder="pictures") == [(f"{own} (0.0 MB)", "pictures/")]


def test_a_later_release_is_shown_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "MIMIC-IT" / "SD_Images").mkdir(parents=True)
    instructions = "MIMIC-IT/SD_instructions.json (missing)"
    assert files(tmp_path, "otter_mimicit_sd") == [(instructions, "MIMIC-IT/SD_Images/")]
