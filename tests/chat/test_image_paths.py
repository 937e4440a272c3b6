"""Lines of image paths."""

import pytest

from chat.images import (
    ImagePathError,
    existing_image_paths,
    leading_image_paths,
    local_path,
    split_image_paths,
)


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
        ("~5 objects?", [], "~5 objects?"),
        ("", [], ""),
    ],
)
def test_files_at_the_beginning_of_a_line(tmp_path, monkeypatch, line, paths, rest):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "my cat.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert leading_image_paths(line) == (tuple(paths), rest)


@pytest.mark.parametrize(
    "address, path",
    [
        ("file:///tmp/a.png", "/tmp/a.png"),
        ("file://localhost/tmp/a.png", "/tmp/a.png"),
        ("file://127.0.0.1/tmp/a.png", "/tmp/a.png"),
        ("FILE:/tmp/a.png", "/tmp/a.png"),
        ("file:///tmp/my%20cat%2B.png", "/tmp/my cat+.png"),
        ("file:///tmp/a+b%25.png", "/tmp/a+b%.png"),
        ("file:///tmp/%E7%8C%AB.png", "/tmp/猫.png"),
        ("file:///~/a.png", "/~/a.png"),  # a letter like others
        ("file:///tmp/%7Eme/a.png", "/tmp/~me/a.png"),
        ("file", "file"),
        ("file:", "file:"),
        ("profile:///a.png", "profile:///a.png"),
        ("/tmp/a%20b.png", "/tmp/a%20b.png"),
    ],
)
def test_file_addresses(address, path):
    assert local_path(address) == path
    assert (
        split_image_paths(f"{address} b.png") == existing_image_paths(f"{address} b.png") == (path, "b.png")
    )


@pytest.mark.parametrize("address", ["file://elsewhere/a.png", "file:///tmp/a%00.png"])
def test_file_addresses_that_name_no_file_of_this_machine(address):
    for read in (local_path, split_image_paths, existing_image_paths, leading_image_paths):
        with pytest.raises(ImagePathError, match=address):
            read(address)


def test_file_addresses_at_the_beginning_of_a_line(tmp_path):
    cat = tmp_path / "my cat.jpg"
    cat.touch()
    missing = str(tmp_path / "nowhere.jpg")
    assert leading_image_paths(f"{cat.as_uri()} what is it?") == ((str(cat),), "what is it?")
    assert leading_image_paths(f"'{cat.as_uri()}'") == ((str(cat),), "")
    assert leading_image_paths(f"file://{missing} what?") == ((missing,), "what?")  # said, not asked about
    assert leading_image_paths("file: what is it?") == ((), "file: what is it?")
