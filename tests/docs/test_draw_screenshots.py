"""The command that makes the README's screenshots, with a tiny checkpoint and an evaluation of its own."""

from pathlib import Path

import pytest
from PIL import Image

from docs import draw_screenshots
from eval.results import write_results
from eval.scores import Row
from tests import browser
from tests.chat.conftest import base_models, build, checkpoint, model_and_processor, pictures  # noqa: F401


def rows(paths: list[Path], name: str, *images: int) -> list[Row]:
    """A dialogue with a round for each number of new images."""
    found, shown = [], 0
    for number, new in enumerate(images):
        files = tuple(str(paths[place]) for place in range(shown, shown + new))
        shown += new
        found.append(Row(name, "", f"what is it, {number}?", "red", ("red",), "colour", files, shown))
    return found


def test_a_dialogue_over_two_pictures_is_chosen(pictures):  # noqa: F811
    dialogues = [
        *rows(pictures, "one", 1, 0, 0),
        *rows(pictures, "short", 2),
        *rows(pictures, "two", 1, 1, 0, 1),
    ]
    chosen = draw_screenshots.rounds_of(dialogues, None)
    assert [row.test_name for row in chosen] == ["two"] * draw_screenshots.ROUNDS
    assert [row.test_name for row in draw_screenshots.rounds_of(dialogues, "short")] == ["short"]
    with pytest.raises(draw_screenshots.DrawingError, match="is called other"):
        draw_screenshots.rounds_of(dialogues, "other")


@pytest.mark.slow
@browser.NEEDED
def test_both_pictures_are_made(checkpoint, pictures, tmp_path, monkeypatch):  # noqa: F811
    results, output = tmp_path / "results.json", tmp_path / "images"
    settings = {"checkpoint": "tiny/final", "eval_data": "shapes.json"}
    write_results(results, rows(pictures, "two", 1, 1, 0), None, settings)
    monkeypatch.setenv("VISUALCHAT_API_KEY", "a visitor's")  # of another page
    words = ["--checkpoint_path", str(checkpoint), "--results", str(results), "--output", str(output)]
    assert draw_screenshots.main(words) == 0
    with Image.open(output / "report.png") as report, Image.open(output / "web.png") as web:
        assert report.size == (1280, 1000)
        assert web.width == 1280 and web.height > 900  # three rounds are more than fits the window
        assert len(web.convert("RGB").getcolors(web.width * web.height)) > 100  # the pictures are there


def test_what_is_wrong_is_said(tmp_path, capsys):
    (tmp_path / "x.json").write_text("[]")
    words = ["--checkpoint_path", str(tmp_path), "--results", str(tmp_path / "x.json")]
    assert draw_screenshots.main(words) == 1
    assert "x.json: not a file of results" in capsys.readouterr().err
