"""Whom the page reaches: by keyboard, on a phone, without sight."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the serve extra is not installed")

from playwright.sync_api import Page, expect

from support.browsing import PHONE, Visit, ask, await_comparison, picture, put
from support.fake_chat import ANSWER, TOKENS, Fake


def test_everything_works_from_the_keyboard(page: Page, fake: Fake) -> None:
    """Would catch what only a mouse reaches, a focus lost when buttons change places, and an
    answer that cannot be stopped.
    """
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the question")).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Use a drawing")).to_be_focused()
    page.keyboard.press("Enter")
    question = page.get_by_label("Question", exact=True)
    expect(question).to_be_focused()
    fake.held.clear()
    page.keyboard.type("Line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and two")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Ask")).to_be_focused()
    page.keyboard.press("Enter")
    expect(question).to_be_focused()
    expect(page.locator("#turns .tokens span")).to_have_count(4)
    assert fake.asked[0]["messages"][0]["content"][1]["text"] == "Line one\nand two"
    page.keyboard.press("Escape")
    expect(page.get_by_text("Stopped. 4 tokens")).to_be_visible()
    assert len(fake.asked) == 1, "a stopped answer is not compared"


def test_the_whole_answer_is_said_after_a_conversation_was_left(page: Page, fake: Fake) -> None:
    """Would catch the beginning of an answer kept from who cannot see it, as long as what had been
    said of the answer that was left.
    """
    page.goto("/")
    page.get_by_label("Compare with plain decoding").uncheck()
    fake.tokens = [("First sentence. ", "verifier", 0.0), *TOKENS[1:]]
    fake.held.clear()
    # Every pause is over when it begins.
    page.evaluate("() => { let now = 0; performance.now = () => (now += 2000); }")
    ask(page)
    expect(page.locator("#said")).to_contain_text("First sentence.")
    page.get_by_role("button", name="New conversation").click()
    fake.tokens = list(TOKENS)
    fake.held.set()
    ask(page)
    expect(page.locator("#said")).to_have_text(ANSWER)


def test_a_narrow_phone_scrolls_down_only(visit: Visit, fake: Fake) -> None:
    """Would catch anything wider than 360 pixels, in every state of the page."""
    page = visit.page
    visit.expected.append("429")
    page.set_viewport_size(PHONE)
    fake.tokens = [("W" * 80, "drafted", 0.0), *TOKENS]
    page.goto("/")
    expect(page.locator("#model")).to_contain_text("fake")
    fits(page)
    page.get_by_text("Acceptance and settings").click()
    page.get_by_text("More settings").click()
    fits(page)
    put(page, "choose", picture(400, 30))
    ask(page, "Q" * 120)
    await_comparison(page)
    page.get_by_text("More figures").click()
    fits(page)
    fake.refusal = (429, {"Retry-After": "30"})
    ask(page)
    page.get_by_role("button", name="Try again").wait_for()
    fits(page)


def fits(page: Page) -> None:
    widths = "() => [document.documentElement, document.body].map((it) => it.scrollWidth)"
    assert max(page.evaluate(widths)) <= PHONE["width"]


def test_every_control_has_a_name_and_can_be_hit(page: Page) -> None:
    """Would catch controls without a name for who cannot see them, ids used twice, and buttons too
    small for a finger (24 pixels, WCAG 2.5.8).
    """
    page.goto("/")
    page.get_by_role("button", name="Use a drawing").click()
    page.get_by_text("More settings").click()
    ask(page)
    await_comparison(page)
    controls = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not(#file), textarea, summary")]
            .filter((it) => it.checkVisibility())
            .map((it) => [
                it.outerHTML,
                (it.labels?.[0]?.textContent || it.ariaLabel || it.textContent).trim(),
                it.type === "range" ? 24 : (it.closest("label") ?? it).offsetHeight,
            ])"""
    )
    assert len(controls) > 12
    assert not [html for html, name, _ in controls if not name]
    assert not [html for html, _, height in controls if height < 24]
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((it) => it.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("document.documentElement.lang") == "en"
