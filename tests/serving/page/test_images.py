"""Images on their way from a visitor to the server."""

from __future__ import annotations

import io
from base64 import b64decode
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the serve extra is not installed")

from playwright.sync_api import Page, expect
from support.browsing import answered, ask, put
from support.fake_chat import Fake



def test_what_is_no_image_is_refused_by_name(page: Page) -> None:
    """Would catch a broken preview of a text file, and one that takes the image's place."""
    page.goto("/")
    page.get_by_role("button", name="Use a drawing").click()
    expect(page.locator("#preview")).to_be_visible()
    file = {"name": "notes.png", "mimeType": "image/png", "buffer": b"no pixels"}
    page.locator("#file").set_input_files(file)  # type: ignore[arg-type]  # a TypedDict of theirs
    expect(page.locator("#picture-error")).to_have_text(
        "notes.png is not an image that the browser can read."
    )
    assert page.locator("#caption").inner_text().startswith("a drawing")


def sent_image(fake: Fake) -> tuple[str, Image.Image]:
    part = fake.asked[0]["messages"][0]["content"][0]
    head, data = part["image_url"]["url"].split(";base64,")
    return head.removeprefix("data:"), Image.open(io.BytesIO(b64decode(data)))


