"""Lines of image paths."""

import pytest

from chat.images import ImagePathError, existing_image_paths, leading_image_paths, split_image_paths


@pytest.mark.parametrize(
    "line, paths",
    [
        ("  NA ", ()),
        (" a.png   b.jpg ", ("a.png", "b.jpg")),
        ("'my cat.png' na.png", ("my cat.png", "na.png")),
        (r"my\ cat.png", ("my cat.png",)),
        ("file:///tmp/my%20cat%2B.png b.png", ("/tmp/my cat+.png", "b.png")),
        ("file://localhost/tmp/%E7%8C%AB.png", ("/tmp/猫.png",)),
        ("FILE:/tmp/a+b%25.png", ("/tmp/a+b%.png",)),
        ("file: profile:///a%20.png", ("file:", "profile:///a%20.png")),
    ],
)
def test_paths_of_a_line(line, paths):
    assert split_image_paths(line) == existing_image_paths(line) == paths


@pytest.mark.parametrize("line", ["it's.png", "file://elsewhere/a.png", "file:///tmp/a%00.png"])
def test_lines_that_name_no_file_of_this_machine(line):
    with pytest.raises(ImagePathError, match=line):
        split_image_paths(line)


def test_a_line_that_is_a_file_is_one_path_and_a_tilde_the_home(tmp_path, monkeypatch):
    odd = tmp_path / "it's my cat.png"
    odd.touch()
    assert existing_image_paths(f" {odd} ") == (str(odd),)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert existing_image_paths("~/a.png b.png") == (f"{tmp_path}/a.png", "b.png")


@pytest.mark.parametrize(
    "line, paths, rest",
    [
        ("my cat.jpg", ["my cat.jpg"], ""),  # the whole line is a file's name
        ("a.png 'my cat.jpg' It's what?", ["a.png", "my cat.jpg"], "It's what?"),
        (r"my\ cat.jpg a.png", ["my cat.jpg", "a.png"], ""),
        ('"my cat.jpg" "quoted"', ["my cat.jpg"], '"quoted"'),
        ("notes.txt what is it?", [], "notes.txt what is it?"),
        ("b.png what is it?", [], "b.png what is it?"),  # there is none
        ("it's a.png", [], "it's a.png"),
        ("~5 objects?", [], "~5 objects?"),
        ("file:///nowhere.jpg what?", ["/nowhere.jpg"], "what?"),  # said, not asked about
        ("file: what is it?", [], "file: what is it?"),
    ],
)
def test_files_at_the_beginning_of_a_line(tmp_path, monkeypatch, line, paths, rest):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "my cat.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert leading_image_paths(line) == (tuple(paths), rest)
