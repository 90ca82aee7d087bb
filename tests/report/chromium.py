"""Headless Chromium, where there is one, and what it sees of a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ALL_DRAWN = "[...document.querySelectorAll('[data-figure]')].every(box => box.querySelector('.main-svg'))"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser for the tests of a module; they are skipped, saying why, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium: apt-get install chromium, or say where it is in the variable CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        try:
            yield browser
        finally:
            browser.close()


class Shown:
    """A page as it is shown, with what it said and asked for.

    Args:
        browser: from ``chromium``.
        path: of the page.
        width: of the window, CSS pixels.
        theme: ``light`` or ``dark``.

    Attributes:
        page: playwright's.
        said: what is in the console, warnings and errors.
        asked: every address that was asked for.
    """

    def __init__(self, browser: Any, path: Path, width: int = 1440, theme: str = "light") -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.resolve().as_uri())

    def draw_all(self) -> None:
        """Make the window so tall that all charts are in it, and wait for them."""
        before = 0
        while (height := self.page.evaluate("document.documentElement.scrollHeight")) != before:
            before = height
            self.page.set_viewport_size({"width": self.page.viewport_size["width"], "height": height})
            self.wait(ALL_DRAWN)
            self.page.wait_for_timeout(200)  # plotly follows the window a little later

    def wait(self, condition: str) -> None:
        """Wait until an expression is true; by asking, since the page allows no code that it does not bring along."""
        for _ in range(600):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise TimeoutError(f"never true: {condition}")

    def boxes(self, selector: str) -> list[dict[str, Any]]:
        """The visible elements of a CSS selector: text, and x, y, right, bottom on the page."""
        found: list[dict[str, Any]] = self.page.evaluate(
            """selector => [...document.querySelectorAll(selector)].map(e => {
                const r = e.getBoundingClientRect();
                return {text: e.textContent, x: r.left, y: r.top, right: r.right, bottom: r.bottom};
            }).filter(r => r.right > r.x && r.bottom > r.y)""",
            selector,
        )
        return found


def overlapping(boxes: list[dict[str, Any]], others: list[dict[str, Any]] | None = None) -> list[tuple[str, str]]:
    """Pairs that cover each other by more than a pixel; of one list, different ones in it."""
    pairs = (
        [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
        if others is None
        else [(a, b) for a in boxes for b in others]
    )
    return [
        (a["text"], b["text"])
        for a, b in pairs
        if min(a["right"], b["right"]) - max(a["x"], b["x"]) > 1
        and min(a["bottom"], b["bottom"]) - max(a["y"], b["y"]) > 1
    ]
