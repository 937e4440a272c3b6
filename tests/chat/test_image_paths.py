"""Lines of image paths."""

import pytest

from chat.image_paths import ImagePathError, existing_image_paths, split_image_paths


@pytest.mark.parametrize(
    "line, paths",
    [
        ("", ()),
        ("  na ", ()),
        ("NA", ()),
        ("a.png", ("a.png",)),
        (" a.png   b.jpg ", ("a.png", "b.jpg")),
        ("'my cat.png' b.jpg", ("my cat.png", "b.jpg")),
        ('"it\'s.png"', ("it's.png",)),
        (r"my\ cat.png", ("my cat.png",)),
        ("na.png", ("na.png",)),
    ],
)
def test_paths_of_a_line(line, paths):
    assert split_image_paths(line) == paths


def test_an_open_quote_is_a_mistake():
    with pytest.raises(ImagePathError, match="No closing quotation"):
        split_image_paths("it's.png")


def test_a_line_that_is_a_file_is_one_path(tmp_path, monkeypatch):
    odd = tmp_path / "it's my cat.png"
    odd.touch()
    assert existing_image_paths(f" {odd} ") == (str(odd),)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert existing_image_paths("~/a.png b.png") == (f"{tmp_path}/a.png", "b.png")
