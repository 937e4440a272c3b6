"""Names and files that are asked for and not there are named, all at once."""

from pathlib import Path

import pytest

from utils.data.registry import DATASETS, find_specs, require_files
from utils.data.spec import DataError


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        DataError,
        match=r"unknown dataset lava, cocoa; the known ones are: aokvqa, .*sparkles_dialogue; to use .*--plugin",
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


def test_own_files_stand_beside_their_pictures_or_an_image_folder(tmp_path: Path) -> None:
    own = tmp_path / "mine" / "talks.jsonl"
    llava, row = find_specs(["llava", str(own)])
    assert llava is DATASETS["llava"]
    assert row.annotations[0].path == str(own) and row.images[0].locate(tmp_path) is None
    own.parent.mkdir()
    own.touch()
    assert row.images[0].locate(tmp_path) == own.parent
    (row,) = find_specs([str(own)], image_folder=tmp_path / "pictures")
    assert [part.path for part in row.images] == [str(tmp_path / "pictures")]


def test_own_files_are_taken_as_given_or_below_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (row,) = find_specs(["my.json"])
    with pytest.raises(
        DataError, match=r"1 parts of the datasets are missing: my\.json \(a path given by you\)"
    ):
        require_files([row], tmp_path / "data")
    (tmp_path / "here" / "my.json").touch()
    for folder in ("here", "data"):  # where there are both, the data folder's
        (tmp_path / folder / "my.json").touch()
        assert row.annotations[0].locate(tmp_path / "data") == tmp_path / folder / "my.json"
        assert row.images[0].locate(tmp_path / "data") == tmp_path / folder


def test_a_folder_that_datasets_saved_is_a_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown dataset"):
        find_specs([str(tmp_path)])
    (tmp_path / "state.json").touch()
    assert find_specs([str(tmp_path)])[0].name == str(tmp_path)
