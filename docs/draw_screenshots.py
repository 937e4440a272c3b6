"""Makes the README's two screenshots again, of a checkpoint and its evaluation, in headless Chromium:

    python -m docs.draw_screenshots --checkpoint_path output/demo/final \\
        --results output/demo/before.json output/demo/evaluation.json

`web.png` is the page of `chat.web` after three rounds of a dialogue of the set, answered by the checkpoint as it is
now; `report.png` is the page of `eval.report`. Playwright is among the requirements for development, Chromium the
system's own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from playwright.sync_api import Browser, Locator, expect, sync_playwright

from eval import report
from eval.results import ResultsError, read_results
from eval.scores import Row
from utils.commands import ROOT

ROUNDS = 3
WAIT = 300_000  # milliseconds; for machines that do much else at the same time


class DrawingError(RuntimeError):
    """A picture that could not be made; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parsed = _parser().parse_args(arguments)
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )  # without one, that which `playwright install` brought
    try:
        rounds = rounds_of(read_results(parsed.results[0])[1], parsed.dialogue)
        parsed.output.mkdir(parents=True, exist_ok=True)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            draw_report(browser, parsed.results, parsed.title, parsed.output / "report.png")
            with chat_page(parsed.checkpoint_path) as address:
                draw_chat(browser, address, rounds, parsed.output / "web.png")
            browser.close()
    except (DrawingError, ResultsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def rounds_of(rows: Sequence[Row], name: str | None) -> list[Row]:
    """The first rounds of the dialogue `name`; without one, of the first that has shown two pictures by then.

    Raises `DrawingError` where there is none.
    """
    for dialogue, of_dialogue in groupby(rows, key=lambda row: row.test_name):
        rounds = list(of_dialogue)[:ROUNDS]
        if dialogue == name or (name is None and len(rounds) == ROUNDS and rounds[-1].images_so_far >= 2):
            return rounds
    wanted = f"is called {name}" if name else f"shows two pictures within {ROUNDS} rounds"
    raise DrawingError(f"no dialogue of these results {wanted}")


def draw_report(browser: Browser, results: Sequence[Path], title: str, picture: Path) -> None:
    """The top of the report, down to its first dialogue."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        if report.main([*map(str, results), "--title", title, "--output", str(page)]):
            raise DrawingError("there is no report")
        shown = browser.new_page(viewport={"width": 1280, "height": 1000})
        shown.goto(page.as_uri())
        shown.screenshot(path=picture)
        shown.close()


@contextmanager
def chat_page(checkpoint: Path) -> Iterator[str]:
    """The address of the page, which runs meanwhile. Raises `DrawingError` where it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "chat.web", "--checkpoint_path", str(checkpoint.resolve())]
    environment = {name: value for name, value in os.environ.items() if name != "VISUALCHAT_API_KEY"}
    process = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        while not _answers(address):
            if process.poll() is not None:
                raise DrawingError(f"the page did not start (exit status {process.returncode})")
            time.sleep(0.3)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def draw_chat(browser: Browser, address: str, rounds: Sequence[Row], picture: Path) -> None:
    """The page after these rounds, as high as they need it."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(WAIT)
    page.goto(address)
    for number, asked in enumerate(rounds, start=1):
        if asked.images:
            page.locator("#box input[type=file]").set_input_files(asked.images)
            expect(page.locator("#box .thumbnails img")).to_have_count(len(asked.images), timeout=WAIT)
        page.locator("#box textarea").fill(asked.question)
        page.get_by_label("Submit").click()
        expect(page.locator("#chat .bot .message-content")).to_have_count(number, timeout=WAIT)
        expect(page.locator("#status")).to_contain_text("tokens", timeout=WAIT)
        expect(page.get_by_label("Submit")).to_be_visible(timeout=WAIT)
    hidden = _hidden_height(page.locator("#chat .bubble-wrap"))
    page.set_viewport_size({"width": 1280, "height": 800 + hidden})
    page.mouse.move(0, 0)  # off the buttons, which change their colour under it
    page.wait_for_timeout(500)  # fonts, and what fades in
    page.screenshot(path=picture)
    page.close()


def _hidden_height(scrolled: Locator) -> int:
    """Pixels that are only seen by scrolling."""
    return int(scrolled.evaluate("element => element.scrollHeight - element.clientHeight"))


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address).close()
    except OSError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m docs.draw_screenshots", description="Make the README's two screenshots."
    )
    parser.add_argument("--checkpoint_path", type=Path, required=True, help="a folder that chat.web takes")
    parser.add_argument(
        "--results", type=Path, nargs="+", required=True, help="what eval.batch_generation wrote"
    )
    parser.add_argument("--dialogue", help="of the first results (default: the first with two pictures)")
    parser.add_argument("--title", default="Evaluation of the demonstration", help="of the report")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images", help="a folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
