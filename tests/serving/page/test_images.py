"""Images on their way from a visitor to the server."""

from __future__ import annotations

import io
from base64 import b64decode

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the serve extra is not installed")

from playwright.sync_api import Page, expect

from support.browsing import ask, await_answer, picture, put
from support.fake_chat import ANSWER, Fake


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_images_come_in_by_every_way_and_large_ones_are_scaled(
    page: Page, fake: Fake, way: str
) -> None:
    """Would catch a drop that opens the file instead, and a phone's 12 megapixels sent whole."""
    page.goto("/")
    page.get_by_label("Compare with plain decoding").uncheck()
    put(page, way, picture(3000, 30) if way == "drop" else picture(40, 30))
    expect(page.get_by_role("img", name="The image you ask about: photo.png")).to_be_visible()
    assert page.locator("body.over").count() == 0
    ask(page)
    assert await_answer(page) == ANSWER
    kind, sent = sent_image(fake)
    assert (kind, sent.size) == (
        ("image/jpeg", (1568, 16)) if way == "drop" else ("image/png", (40, 30))
    )


def test_what_is_no_image_is_refused_by_name(page: Page) -> None:
    """Would catch a broken preview of a text file, and one that takes the image's place."""
    page.goto("/")
    page.get_by_role("button", name="Use a drawing").click()
    expect(page.locator("#preview")).to_be_visible()
    put(page, "choose", b"no pixels")
    expect(page.locator("#picture-error")).to_have_text(
        "photo.png is not an image that the browser can read."
    )
    assert page.locator("#caption").inner_text().startswith("a drawing")


def sent_image(fake: Fake) -> tuple[str, Image.Image]:
    part = fake.asked[0]["messages"][0]["content"][0]
    head, data = part["image_url"]["url"].split(";base64,")
    return head.removeprefix("data:"), Image.open(io.BytesIO(b64decode(data)))
