"""What the page says when there is no answer."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the serve extra is not installed")

from playwright.sync_api import expect

from support.browsing import Visit, ask, await_answer, await_that
from support.fake_chat import ANSWER, Fake


def test_a_missing_key_is_asked_for_and_kept_nowhere(visit: Visit, fake: Fake) -> None:
    """Would catch a page that is stuck at a server with keys, and a key left behind in the
    browser.
    """
    fake.key = "sesame"
    page = visit.page
    visit.expected.append("401")
    page.goto("/")
    box = page.locator("#trouble")
    for key in ("wrong", "sesame"):
        expect(box).to_contain_text("This server asks for an API key.")
        expect(box.get_by_label("API key")).to_be_focused()
        box.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_text("fake · drafts by tiny")
    ask(page)
    assert await_answer(page) == ANSWER
    kept = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
    assert "sesame" not in page.evaluate(kept)


def test_a_key_that_no_header_can_carry(visit: Visit, fake: Fake) -> None:
    """Would catch "cannot be reached" said of a server that was never asked."""
    fake.key = "sesame"
    page = visit.page
    visit.expected.append("401")
    page.goto("/")
    box = page.locator("#trouble")
    box.get_by_label("API key").fill("ключ")
    page.keyboard.press("Enter")
    expect(box).to_contain_text("characters that no key can have")
    box.get_by_label("API key").fill("sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_text("fake · drafts by tiny")


def test_a_full_server_says_when_to_try_again(visit: Visit, fake: Fake) -> None:
    """Would catch a Retry-After that nobody heeds, and a question lost to an error."""
    page = visit.page
    visit.expected.append("429")
    page.goto("/")
    fake.refusal = (429, {"Retry-After": "1"})
    ask(page)
    button = page.get_by_role("button", name="Try again")
    expect(button).to_have_text("Try again in 1 s")
    assert button.is_disabled()
    expect(page.get_by_label("Question", exact=True)).to_have_value("Where is the cross?")
    expect(button).to_be_enabled()
    button.click()
    assert await_answer(page) == ANSWER
    assert page.locator("#turns li").count() == 1
    assert not page.locator("#trouble").is_visible()
    expect(page.get_by_label("Question", exact=True)).to_have_value("")


def test_errors_say_what_happened_and_can_be_tried_again(visit: Visit, fake: Fake) -> None:
    """Would catch an error that looks like an answer, one that leaves the page waiting, and half an
    answer that goes into the conversation.
    """
    page = visit.page
    page.goto("/")
    page.get_by_label("Compare with plain decoding").uncheck()
    for turn, (status, says) in enumerate(
        (
            (503, "takes no requests right now"),
            (413, "larger than this server takes"),
            (400, "said by the server"),
            (500, "said by the server"),
            (None, "The connection ended before the answer did."),
        )
    ):
        visit.expected.append(str(status))
        fake.refusal, fake.breaks = (status, {}) if status else None, status is None
        ask(page)
        await_that(page, "() => !document.getElementById('trouble').hidden")
        expect(page.locator("#trouble")).to_contain_text(says)
        fake.breaks = False
        page.get_by_role("button", name="Try again").click()
        assert await_answer(page, turn if status else turn + 1) == ANSWER
        assert fake.asked[-1] == fake.asked[-2]


def test_an_unreachable_server_is_named(visit: Visit, fake: Fake) -> None:
    """Would catch the browser's own "Failed to fetch" shown to people."""
    page = visit.page
    visit.expected.append("ERR_FAILED")
    page.route("**/v1/models", lambda route: route.abort())
    page.goto("/")
    expect(page.locator("#trouble")).to_contain_text("The server cannot be reached.")
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#model")).to_have_text("fake · drafts by tiny")
