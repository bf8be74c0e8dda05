"""A browser for tests of the playground, which watches what the page does behind a test's back."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import ConsoleMessage, Page, ViewportSize, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 740}
PATIENCE = 30_000  # ms: a loaded machine is slow, and waiting costs only where something hangs


@dataclass
class Visit:
    """A page, and what happened on it.

    Attributes:
        page: at `address`; one for many tests, each of which begins by opening it anew.
        address: of the server.
        expected: parts of errors that the browser may log in this test.
        errors: what it logged.
        elsewhere: requests to other addresses.
    """

    page: Page
    address: str
    expected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """From now on."""
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._meet(request.url))

    def begin(self) -> None:
        """Another test."""
        for past in (self.expected, self.errors, self.elsewhere):
            past.clear()
        self.page.set_viewport_size(DESKTOP)

    def check(self) -> None:
        """Nothing happened that the test did not expect."""
        errors = [e for e in self.errors if not any(text in e for text in self.expected)]
        assert not errors, errors
        assert not self.elsewhere, self.elsewhere

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _meet(self, url: str) -> None:
        if not url.startswith((self.address + "/", "data:", "blob:")):
            self.elsewhere.append(url)


@contextmanager
def visiting(address: str) -> Iterator[Visit]:
    """In the system's own browser; skips the test where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page(base_url=address, viewport=DESKTOP, reduced_motion="reduce")
            page.set_default_timeout(PATIENCE)
            visit = Visit(page, address)
            visit.watch()
            yield visit
        finally:
            browser.close()


def await_that(page: Page, condition: str, argument: object = None) -> None:
    """Until a function holds on the page. Seen at the next frame: Playwright's own assertions look
    again only after up to a second.
    """
    page.wait_for_function(condition, arg=argument, polling="raf")


def ask(page: Page, question: str = "Where is the cross?") -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.keyboard.press("Enter")


def await_answer(page: Page, turn: int = 0) -> str:
    """The text of an answer once it has ended."""
    await_that(
        page,
        """(turn) => {
            const note = document.querySelectorAll("#turns > li > .note")[turn];
            return note?.querySelector("button") && document.getElementById("stop").hidden;
        }""",
        turn,
    )
    return str(page.locator("#turns .tokens").nth(turn).text_content())


def await_comparison(page: Page) -> None:
    """Until plain decoding has been timed, too."""
    await_that(page, "() => document.querySelectorAll('#turns > li:last-child .bar').length === 2")


def picture(width: int, height: int) -> bytes:
    """A PNG."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(stream, "PNG")
    return stream.getvalue()


def put(page: Page, way: str, data: bytes, text: str = "") -> None:
    """An image called photo.png, onto the page, and `text` along with it where it is pasted;
    ``way``: choose, drop or paste.
    """
    if way == "choose":
        file: Any = {"name": "photo.png", "mimeType": "image/png", "buffer": data}
        page.locator("#file").set_input_files(file)
        return
    transfer = page.evaluate_handle(
        """([bytes, text]) => {
            const transfer = new DataTransfer();
            if (text) transfer.setData("text/plain", text);
            transfer.items.add(new File([new Uint8Array(bytes)], "photo.png", {type: "image/png"}));
            return transfer;
        }""",
        [list(data), text],
    )
    if way == "paste":
        paste = "(data) => dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}))"
        page.evaluate(paste, transfer)
        return
    event = {"dataTransfer": transfer}
    page.locator("#talk").dispatch_event("dragover", event)
    assert page.locator("body.over").count() == page.locator("#picture:visible").count()
    page.locator("#talk").dispatch_event("drop", event)
