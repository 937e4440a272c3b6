"""The page in a real browser: uploads, rounds, examples, stop, retry, undo, download, login; and no other host."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import pytest
from playwright.sync_api import Page, expect

from chat.images import open_image
from chat.page.layout import EXAMPLES, GENERAL_EXAMPLES, examples_of
from chat.saved_dialogues import save_dialogue
from tests import browser
from tests.ranks import free_port
from utils.conversation import Turn

ROOT = Path(__file__).resolve().parents[2]
WAIT = 120_000  # milliseconds; for machines that do much else at the same time

pytestmark = [
    pytest.mark.slow,
    browser.NEEDED,
]


SLOW = """
import sys, time
from chat.generation import Generator
from chat.web import main
from utils.commands import end_process

step = Generator.step

def slowly(self):
    time.sleep(0.2)
    return step(self)

Generator.step = slowly
end_process(main())
"""
"""The page's program with a model that takes its time: 1,024 tokens last longer than any click on its way."""


@contextmanager
def running(checkpoint: Path, folder: Path, slow: bool = False, **environment: str) -> Iterator[str]:
    """The address of a page that runs meanwhile, as people start it; ended, it leaves no file in `folder`."""
    port = free_port()
    command = [sys.executable, *(("-c", SLOW) if slow else ("-m", "chat.web"))]
    command += ["--checkpoint_path", str(checkpoint), "--device_map", "cpu"]
    command += ["--port", str(port), "--generation_length_per_round", "8"]
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)}
    process = subprocess.Popen(command, env={**os.environ, **offline, **environment}, cwd=ROOT)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(address).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.3)
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        assert list(folder.iterdir()) == []
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


CARDS = {"What is it?": 1, "Which is darker?": 2}
"""Questions that the checkpoint brings as examples, and how many images each has."""


@pytest.fixture(scope="module")
def with_examples(checkpoint, tmp_path_factory) -> Path:
    """The checkpoint as the `final` of a run, with examples of its own; the page is given the run."""
    folder = tmp_path_factory.mktemp("runs") / "my run" / "final"
    shutil.copytree(checkpoint, folder)
    (folder / EXAMPLES).mkdir()
    for number, (question, count) in enumerate(CARDS.items()):
        colours = [(99 * number, 50 * each, 0) for each in range(count)]
        images = tuple(open_image(PIL.Image.new("RGB", (30, 20), colour)) for colour in colours)
        turns = [Turn(question, "It is.", images), Turn("And now?", "Still.")]
        save_dialogue(folder / EXAMPLES / f"{number}.json", turns, None)
    return folder


@pytest.fixture(scope="module")
def address(with_examples, tmp_path_factory) -> Iterator[str]:
    with running(with_examples.parent, tmp_path_factory.mktemp("web"), VISUALCHAT_API_KEY="") as address:
        yield address


@pytest.fixture
def page(address) -> Iterator[Page]:
    with opened(address) as page:
        yield page


@contextmanager
def opened(address: str) -> Iterator[Page]:
    with browser.opened(address) as page:
        page.set_default_timeout(WAIT)
        yield page


def ask(page: Page, question: str, *files: Path) -> None:
    """Ask, and wait until the page takes the next question."""
    if files:
        page.locator("#box input[type=file]").set_input_files(files)
        expect(page.locator("#box .thumbnails img")).to_have_count(len(files), timeout=WAIT)
    page.locator("#box textarea").fill(question)
    page.get_by_label("Submit").click()
    expect(page.locator("#chat .user").get_by_text(question).last).to_be_visible(timeout=WAIT)
    finished(page)


def finished(page: Page) -> None:
    expect(page.locator("#status")).to_contain_text("tokens", timeout=WAIT)
    expect(page.get_by_label("Submit")).to_be_visible(timeout=WAIT)


def answers(page: Page) -> list[str]:
    return page.locator("#chat .bot .message-content").all_inner_texts()


def numbers(page: Page) -> list[str]:
    """The captions of the images, as they stand on the page."""
    return [each.strip() for each in page.locator("#chat .user label").all_inner_texts()]


def test_a_dialogue(page, pictures, tmp_path):
    expect(page.get_by_text("my run")).to_be_visible()  # the model's name
    for button in ("#new", "#download"):
        expect(page.locator(button)).to_be_hidden()  # there is no dialogue yet
    ask(page, "What is it?", *pictures[:2])
    assert "2 images (2 new)" in page.locator("#status").inner_text()
    ask(page, "Where?")
    status = page.locator("#status").inner_text()
    total, computed = int(status.split()[0]), int(status.split("(")[1].split()[0])
    assert "2 images (0 new)" in status and computed < total / 2  # only what is new
    ask(page, "And this?", pictures[2])
    assert numbers(page) == ["Image 1", "Image 2", "Image 3"]
    assert page.locator("#chat .user img").count() == 3 and len(answers(page)) == 3

    before = answers(page)
    page.get_by_label("Retry").last.click()
    page.wait_for_timeout(2000)  # it is taken up some time after the click; until then all looks as finished
    finished(page)
    end = time.monotonic() + WAIT / 1000
    while answers(page) != before and time.monotonic() < end:  # greedy
        page.wait_for_timeout(100)
    assert answers(page) == before
    page.get_by_label("Undo", exact=True).last.click()
    expect(page.locator("#chat .bot .message-content")).to_have_count(2, timeout=WAIT)
    expect(page.locator("#box textarea")).to_have_value("And this?")
    expect(page.locator("#box .thumbnails img")).to_have_count(1)

    with page.expect_download(timeout=WAIT) as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "kept.json")
    said = json.loads((tmp_path / "kept.json").read_text())["messages"]
    assert [each["content"] for each in said if each["role"] == "assistant"] == before[:2]

    page.locator("#new").click()
    expect(page.locator("#chat .bot .message-content")).to_have_count(0, timeout=WAIT)
    expect(page.locator("#new")).to_be_hidden()
    expect(page.locator("#box .thumbnails img")).to_have_count(0)
    ask(page, "What is it?", *pictures[:2])
    assert answers(page) == before[:1] and numbers(page) == ["Image 1", "Image 2"]


def test_examples_are_the_checkpoints_own_and_asked_with_their_images(page):
    shown = page.locator("#chat .example")
    expect(shown).to_have_count(len(CARDS), timeout=WAIT)
    for place, (question, count) in enumerate(CARDS.items()):
        shown.nth(place).click()
        expect(page.locator("#chat .user").get_by_text(question)).to_be_visible(timeout=WAIT)
        finished(page)
        assert f"({count} new)" in page.locator("#status").inner_text() and len(answers(page)) == 1
        assert numbers(page) == [f"Image {number}" for number in range(1, count + 1)]
        loaded = "nodes => nodes.every(node => node.complete && node.naturalWidth > 0)"
        assert page.locator("#chat .user img").evaluate_all(loaded)
        page.locator("#new").click()
        expect(shown).to_have_count(len(CARDS), timeout=WAIT)


def test_a_checkpoint_without_examples_has_those_of_all(checkpoint, with_examples, tmp_path, caplog):
    assert [card["text"] for card in examples_of(checkpoint, tmp_path)] == [
        question for question, _ in GENERAL_EXAMPLES
    ]
    shutil.copytree(with_examples / EXAMPLES, tmp_path / EXAMPLES)
    (tmp_path / EXAMPLES / "0.json").write_text("{}")
    assert [card["text"] for card in examples_of(tmp_path, tmp_path / "shown")] == list(CARDS)[1:]


def test_the_full_screen_shows_the_whole_image(page):
    page.locator("#chat .example").first.click()
    finished(page)
    image, width = page.locator("#chat .user img"), page.viewport_size["width"]
    assert image.bounding_box()["width"] < width / 3
    page.get_by_label("Fullscreen").click()
    page.wait_for_function("document.fullscreenElement", timeout=WAIT)
    box = image.bounding_box()
    assert (
        box["width"] > width * 0.9 and image.evaluate("node => getComputedStyle(node).objectFit") == "contain"
    )
    page.get_by_label("Exit fullscreen").click()
    page.wait_for_function("!document.fullscreenElement", timeout=WAIT)
    assert image.bounding_box()["width"] < width / 3


def test_what_cannot_be_sent_looks_like_it(page):
    def colour() -> str:
        return page.get_by_label("Submit").evaluate("node => getComputedStyle(node).backgroundColor")

    empty = colour()
    page.locator("#box textarea").fill("What is it?")
    ready = colour()
    page.locator("#box textarea").fill("")
    assert colour() == empty != ready


def test_with_a_key_nothing_is_answered_before_the_login(checkpoint, tmp_path):
    with running(checkpoint, tmp_path, VISUALCHAT_API_KEY="open sesame") as address, opened(address) as page:
        for route in ("config", "gradio_api/info", "gradio_api/queue/join", "gradio_api/upload"):
            body = b"{}" if route.endswith(("join", "upload")) else None
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}/{route}", data=body)
            assert refused.value.code == 401, route
        assert page.locator("#box").count() == 0
        for password in ("sesame", "open sesame"):
            page.locator("input:not([type=password])").first.fill("visualchat")
            page.locator("input[type=password]").fill(password)
            page.get_by_role("button", name="Login").click()
            if password == "sesame":
                expect(page.get_by_text("Incorrect")).to_be_visible(timeout=WAIT)
                assert page.locator("#box").count() == 0
        ask(page, "What is it?")
        assert len(answers(page)) == 1


@pytest.fixture
def endless(checkpoint, tmp_path) -> Path:
    """The model as one whose answers go on: what ends them is a token that is never chosen."""
    folder = tmp_path / "endless"
    shutil.copytree(checkpoint, folder)
    settings = folder / "generation_config.json"
    image_token = json.loads((folder / "config.json").read_text())["image_token_id"]
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": image_token}))
    return folder


def test_an_answer_is_stopped(endless, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with running(endless, scratch, slow=True, VISUALCHAT_API_KEY="") as address, opened(address) as page:
        page.locator("#settings button").first.click()
        page.get_by_label("number input for Tokens of an answer, at most").fill("1024")
        page.keyboard.press("Tab")
        page.locator("#box textarea").fill("Tell me everything")
        page.get_by_label("Submit").click()
        expect(page.locator("#chat .bot")).to_contain_text("�", timeout=WAIT)
        page.locator("#box textarea").fill("And n")
        page.wait_for_timeout(500)
        expect(page.locator("#box textarea")).to_have_value("And n")  # though more of the answer has come
        page.get_by_label("Stop").dispatch_event("click")  # at once: it need not stand still, as for a mouse
        expect(page.locator("#status")).to_have_text("stopped", timeout=WAIT)
        page.get_by_label("number input for Tokens of an answer, at most").fill("8")
        page.keyboard.press("Tab")
        ask(page, "And now?")


def test_mistakes_are_told_and_cost_nothing(page, pictures):
    ask(page, "What is it?")
    page.locator("#box textarea").fill("Look: <image>")
    page.get_by_label("Submit").click()
    expect(page.get_by_text("which the tokenizer reserves")).to_be_visible(timeout=WAIT)
    expect(page.locator("#chat .bot .message-content")).to_have_count(1, timeout=WAIT)
    expect(page.locator("#box textarea")).to_have_value("Look: <image>")  # to be mended


@pytest.mark.parametrize("size", [(1920, 1080), (1280, 800), (390, 844)])
def test_it_fits_the_screen(page, pictures, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    ask(page, "What is it?", *pictures[:3])
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    expect(page.get_by_label("Clear")).to_be_hidden()  # "New dialogue" is there
    images = [each.bounding_box() for each in page.locator("#chat .user img").all()]
    captions = [each.bounding_box() for each in page.locator("#chat .user label").all()]
    for image, caption in zip(images, captions, strict=True):
        assert image["y"] + image["height"] <= caption["y"] + 1  # below it
    chat = page.locator("#chat").bounding_box()
    assert (
        chat["width"] <= 960 and abs(chat["x"] * 2 + chat["width"] - size[0]) < 20
    )  # a column in the middle
    for button in ("#new", "#download"):
        assert page.locator(button).evaluate(
            "node => node.scrollWidth <= node.clientWidth"
        )  # its words within it
    for place in ("#box", "#new", "#download", "#chat"):
        box = page.locator(place).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= size[0]
        assert box["y"] >= 0 and box["y"] + box["height"] <= size[1]
