"""A real browser for pages, where there is one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDED = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@contextmanager
def opened(address: str, width: int = 1280, height: int = 800, dark: bool = False) -> Iterator[Page]:
    """A page, which may load from this machine only."""
    hosts = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        size = {"width": width, "height": height}
        page = browser.new_page(viewport=size, color_scheme="dark" if dark else "light")
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.goto(address)
        yield page
        browser.close()
    assert hosts <= {"127.0.0.1", None, ""}  # None: files, data and blob URLs
