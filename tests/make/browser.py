"""A real browser: Debian's Chromium, driven by playwright. Where either is missing the test is skipped; with
MMFAST_NEED_BROWSER=1 (CI) it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu"]  # as root, as CI is; the page is our own
TIMEOUT = 30_000  # milliseconds: a machine may be busy


def missing() -> str:
    """What is not there, in a line."""
    if not any(map(shutil.which, NAMES)):
        return "needs a browser (Debian: apt install chromium)"
    if importlib.util.find_spec("playwright") is None:
        return "needs playwright (pip install playwright)"
    return ""


@contextmanager
def browser() -> Iterator[Any]:
    if why := missing():
        if os.environ.get("MMFAST_NEED_BROWSER") == "1":
            pytest.fail(why)
        pytest.skip(why)
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)))
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield opened
        opened.close()


class Tab:
    """A page of one person, in a profile of its own. What the browser complains of is kept in `complaints`."""

    def __init__(self, browser: Any, url: str, name: str = "", **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 760}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.goto(f"{url}?name={name}" if name else url)
        if name:
            self.page.wait_for_selector("#card > *")

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def type(self, text: str) -> None:
        self.page.keyboard.type(text)

    def text(self, where: str) -> str:
        return self.page.inner_text(where)

    def wait(self, what: str) -> None:
        """Until a script says true. (playwright's own way to wait is an eval, which the page's policy forbids.)"""
        end = time.monotonic() + TIMEOUT / 1000
        while not self.page.evaluate(what):
            assert time.monotonic() < end, f"this never came: {what}"
            self.page.wait_for_timeout(20)

    def saved(self) -> None:
        """Everything that was done is with the server. (A pause of typing is a quarter of a second.)"""
        self.page.wait_for_timeout(300)
        self.wait("document.querySelector('#saved').textContent === 'saved'")

    def done(self, card: str = "") -> None:
        """Hand in, and wait until another card is there."""
        before = self.page.get_attribute("#card", "data-id")
        self.keys("Enter")
        self.wait(f"document.querySelector('#card').dataset.id !== {before!r}")

    def close(self) -> None:
        self.context.close()
