"""The page of an evaluation: complete by itself, and read in a real browser."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from eval import report
from eval.dialogues import load_dialogues
from eval.results import rows_of, write_results
from eval.scores import Row, scores_of
from tests import browser


@pytest.fixture
def results(tmp_path):
    """Two checkpoints' answers to one set, and one's to a set without references, as files."""
    for number in (1, 2):
        Image.new("RGB", (64 * number, 64), (255, 0, 0)).save(tmp_path / f"{number}.png")

    def rows(colour: str) -> list[Row]:
        first, second = str(tmp_path / "1.png"), str(tmp_path / "2.png")
        return [
            Row("one", "1.png", "what <colour>?", colour, ("red",), "colour", (first,), 1),
            Row("one", "2.png", "how many?", "two", ("two", "2"), "count", (second,), 2),
            Row("two", "1.png", "where?", None, ("left",), "place", (first,), 1),
        ]

    def write(name: str, checkpoint: str, data: str, content: list[Row]) -> str:
        path = tmp_path / f"{name}.json"
        settings = {"checkpoint": f"/runs/{checkpoint}/final", "eval_data": f"sets/{data}.json"}
        write_results(path, content, scores_of(content), settings)
        return str(path)

    free = [Row("free", "gone.png", "describe it.", "a & b", images=(str(tmp_path / "gone.png"),))]
    return [
        write("a", "first", "shapes", rows("red")),
        write("b", "second", "shapes", rows("blue")),
        write("c", "first", "free", free),
    ]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "action")]


def test_page_needs_nothing_else_and_escapes(results, tmp_path):
    assert report.main([*results, "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    links = _Links()
    links.feed(page)
    assert all(link.startswith(("data:", "#")) for link in links.found) and "url(" not in page
    assert "what &lt;colour&gt;?" in page and "what <colour>?" not in page
    assert page.count("data:image/png") == 3 and "file is gone" in page
    assert "first/final" in page and "second/final" in page
    assert "nothing is scored" in page and "not asked" in page


@pytest.mark.integration
@browser.NEEDED
def test_browser_filters(results, tmp_path):
    assert report.main([*results, "--output", str(tmp_path / "page.html")]) == 0
    choose = """form => {
        form.elements.tag.value = "differ"; form.elements.kind.value = "colour";
        form.dispatchEvent(new Event("input"));
    }"""
    with browser.opened((tmp_path / "page.html").as_uri()) as page:
        page.locator(".filters").first.evaluate(choose)
        shown = page.content()
    assert re.findall(r'<output class="muted">(.*?)</output>', shown) == ["1 question in 1 dialogue"] * 2
    assert re.search(r'class="card dialogue" data-images="1" hidden=""', shown)
    assert re.search(r'class="turn faint" data-kind="count"', shown)


def test_different_questions_under_one_name_are_refused(results, tmp_path, capsys):
    content = json.loads((tmp_path / "b.json").read_text())
    content["answers"].pop()
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert report.main(results) == 2
    assert "answer different questions" in capsys.readouterr().err


def test_files_that_are_no_results_are_named(tmp_path, capsys):
    (tmp_path / "x.json").write_text("[]")
    assert report.main([str(tmp_path / "x.json")]) == 2
    assert f"{tmp_path / 'x.json'}: not a file of results" in capsys.readouterr().err


@pytest.mark.slow
@browser.NEEDED
@pytest.mark.parametrize("width", [1280, 390])
def test_the_shipped_sets_can_be_read_on_large_and_small_screens(results, tmp_path, width):
    """Nothing is cut off at the side, nothing is written too small; the sets of 2023 and one that is scored."""
    files = results[:2]
    for name in ("eval_single", "eval_comprehensive", "eval_robustness"):
        dialogues = load_dialogues(name)
        rows = rows_of(dialogues, [["an answer of some words"] * len(each.turns) for each in dialogues])
        files.append(str(tmp_path / f"{name}.json"))
        write_results(Path(files[-1]), rows, None, {"checkpoint": "/runs/first/final", "eval_data": name})
    assert report.main([*files, "--output", str(tmp_path / "page.html")]) == 0
    with browser.opened((tmp_path / "page.html").as_uri(), width, 900) as page:
        assert page.locator(".dialogue").count() == 2 + 28
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        right = "nodes => Math.max(...nodes.map(node => node.getBoundingClientRect().right))"
        assert page.locator(".bubble, .chart, table, .filters, img").evaluate_all(right) <= width
        heights = "nodes => Math.min(...nodes.map(node => node.getBoundingClientRect().height))"
        assert page.locator(".chart span, .bubble, .reference").evaluate_all(heights) >= 10  # pixels
