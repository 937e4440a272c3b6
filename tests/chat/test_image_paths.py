"""Lines of image paths."""

import pytest

from chat.image_paths import ImagePathError, existing_image_paths, leading_image_paths, split_image_paths


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


@pytest.mark.parametrize(
    "line, paths, rest",
    [
        ("a.png", ["a.png"], ""),
        ("my cat.jpg", ["my cat.jpg"], ""),  # the whole line is a file's name
        ("a.png what is it?", ["a.png"], "what is it?"),
        ("a.png 'my cat.jpg' It's what?", ["a.png", "my cat.jpg"], "It's what?"),
        (r"my\ cat.jpg a.png", ["my cat.jpg", "a.png"], ""),
        ('"my cat.jpg" "quoted"', ["my cat.jpg"], '"quoted"'),
        ("notes.txt what is it?", [], "notes.txt what is it?"),
        ("b.png what is it?", [], "b.png what is it?"),  # there is none
        ("what is a.png?", [], "what is a.png?"),
        ("it's a.png", [], "it's a.png"),
        ("", [], ""),
    ],
)
def test_files_at_the_beginning_of_a_line(tmp_path, monkeypatch, line, paths, rest):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "my cat.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert leading_image_paths(line) == (tuple(paths), rest)
