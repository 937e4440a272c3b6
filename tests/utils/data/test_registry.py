"""Names and files that are asked for and not there are named, all at once."""

from pathlib import Path

import pytest

from utils.data.registry import DATASETS, find_specs, require_files
from utils.data.spec import DataError


def test_the_rows_are_the_published_files() -> None:
    rows = {name: [part.path for part in row.annotations + row.images] for name, row in DATASETS.items()}
    assert rows == {
        "llava": ["llava/detail_23k.json", "llava/complex_reasoning_77k.json", "coco/train2017"],
        "llava_dial": ["llava/conversation_58k.json", "coco/train2017"],
    }


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        DataError, match=r"unknown dataset lava, cocoa; the known ones are: llava, llava_dial"
    ):
        find_specs(["llava", "lava", "cocoa"])


def test_no_name_and_a_name_twice_are_refused() -> None:
    with pytest.raises(DataError, match="no dataset was named"):
        find_specs([])
    with pytest.raises(DataError, match="llava is named more than once"):
        find_specs(["llava", "llava_dial", "llava"])


def test_all_missing_files_are_named_at_once_with_their_origin(tmp_path: Path) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "detail_23k.json").write_text("[]")
    with pytest.raises(DataError) as caught:
        require_files(find_specs(["llava", "llava_dial"]), tmp_path)
    message = str(caught.value)
    assert message.startswith("3 parts of the datasets are missing: ") and "\n" not in message
    for path in ("llava/complex_reasoning_77k.json", "llava/conversation_58k.json", "coco/train2017"):
        assert f"{tmp_path / path} (from http" in message
    assert "detail_23k" not in message and "--data_path" in message
