"""Asking on the page: what is sent, and what is shown of the answer."""

from __future__ import annotations

import io
from base64 import b64decode

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the serve extra is not installed")

from playwright.sync_api import Page, Route, expect

from support.browsing import ask, await_answer, await_comparison, picture, put
from support.fake_chat import ANSWER, TOKENS, Fake


def test_tokens_show_their_origin_and_the_figures_those_of_the_server(
    page: Page, fake: Fake
) -> None:
    """Would catch origins that are told apart by nothing but their colour, or not at all, figures
    of another answer, and a ratio upside down: 25 ms a token plainly, 10 ms with drafts.
    """
    page.goto("/")
    page.get_by_role("button", name="Use a drawing").click()
    ask(page)
    assert await_answer(page) == ANSWER
    await_comparison(page)
    spans = page.locator("#turns .tokens span")
    assert [span.get_attribute("class") for span in spans.all()] == [o for _, o, _ in TOKENS]
    style = "(span) => getComputedStyle(span).textDecorationStyle"
    assert [spans.nth(at).evaluate(style) for at in (0, 1, 2)] == ["dotted", "solid", "dashed"]
    expect(page.locator(".tau dd")).to_have_text("2.75")
    expect(page.locator(".spent")).to_contain_text("bound spent, of 2.5 nats of regret")
    expect(page.locator(".spent dd")).to_have_text("0.12")
    expect(page.locator(".speedup dd")).to_have_text("2.50×")
    expect(page.locator(".race")).not_to_contain_text("busy")
    expect(page.locator(".race")).to_contain_text("Both answers are the same, token by token.")
    expect(page.get_by_text("11 tokens: 6 drafted, 1 relaxed, 4 the model’s own.")).to_be_visible()
    page.get_by_text("More figures").click()
    expect(page.locator("details dl").last).to_contain_text("1 in 1 step, 2 in 3 steps")
    expect(page.locator("#said")).to_contain_text("2.50× as fast")
    question, plain = fake.asked
    assert question["specdec"] == {"policy": "operator", "epsilon": 0.3, "origins": True}
    assert plain["specdec"] == {"policy": "lossless", "drafts": False, "origins": True}
    assert {**question, "specdec": None} == {**plain, "specdec": None}


def test_where_nothing_was_drafted_nothing_is_compared(page: Page, fake: Fake) -> None:
    """Would catch chance shown as a speedup: both ways of answering were the same."""
    fake.drafts = False
    page.goto("/")
    ask(page)
    assert await_answer(page) == ANSWER
    expect(page.locator(".race")).to_contain_text("Nothing was drafted")
    expect(page.locator(".tau dd")).to_have_text("1.00")
    assert not page.locator(".speedup").is_visible()
    assert len(fake.asked) == 1


def test_a_speedup_beyond_acceptance_is_doubted(page: Page, fake: Fake) -> None:
    """Would catch a busy server's plain answer taken for a speedup of 9 where τ is 2.75."""
    fake.plain_seconds = 0.9
    page.goto("/")
    ask(page)
    await_comparison(page)
    expect(page.locator(".speedup dd")).to_have_text("9.00×")
    expect(page.locator(".race")).to_contain_text("something else kept the server busy")


def test_the_slider_never_asks_for_more_than_the_operator_allows(page: Page, fake: Fake) -> None:
    """Would catch an epsilon rounded up, which the server refuses, and a lossless request that
    names an epsilon, which it refuses as well.
    """
    fake.policy["epsilon"] = 0.07
    page.goto("/")
    slider = page.get_by_role("slider", name="Acceptance")
    page.get_by_label("Compare with plain decoding").uncheck()
    for turn, (key, told) in enumerate((("End", "ε = 0.07"), ("ArrowLeft", "ε = 0.067"))):
        slider.press(key)
        assert slider.get_attribute("aria-valuetext") == told
        ask(page)
        assert await_answer(page, turn) == ANSWER
    slider.press("Home")
    ask(page)
    assert await_answer(page, 2) == ANSWER
    assert [body["specdec"] for body in fake.asked] == [
        {"policy": "operator", "epsilon": 0.07, "origins": True},
        {"policy": "operator", "epsilon": 0.067, "origins": True},
        {"policy": "lossless", "origins": True},
    ]
    expect(page.locator(".spent").last).to_contain_text("bound spent: lossless")


def test_a_lossless_server_leaves_no_choice_and_says_why(page: Page, fake: Fake) -> None:
    """Would catch a slider that promises what the server refuses, and a text model that is offered
    images.
    """
    fake.policy, fake.images = {"kind": "lossless"}, False
    page.goto("/")
    expect(page.locator("#epsilon-note")).to_contain_text("allows no relaxed acceptance")
    assert page.get_by_role("slider").is_disabled()
    assert not page.locator("#relaxed-key").is_visible()
    assert not page.locator("#picture").is_visible()
    ask(page)
    assert await_answer(page) == ANSWER
    assert fake.asked[0]["messages"] == [{"role": "user", "content": "Where is the cross?"}]
    assert fake.asked[0]["specdec"]["policy"] == "lossless"


def test_follow_ups_carry_the_conversation_and_the_image_once(page: Page, fake: Fake) -> None:
    """Would catch an image sent with every turn, answers left out of the conversation, and another
    image put into the conversation about the one before.
    """
    page.goto("/")
    page.get_by_role("button", name="Use a drawing").click()
    page.get_by_label("Compare with plain decoding").uncheck()
    page.get_by_role("button", name="Where is the circle?").click()
    assert await_answer(page) == ANSWER
    ask(page, "And then?")
    assert await_answer(page, 1) == ANSWER
    first, *others = fake.asked[1]["messages"]
    assert [part["type"] for part in first["content"]] == ["image_url", "text"]
    assert others == [
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "And then?"},
    ]
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#turns li")).to_have_count(0)
    expect(page.get_by_role("button", name="Use a drawing")).to_be_visible()
    ask(page, "Alone?")
    assert await_answer(page) == ANSWER
    assert fake.asked[2]["messages"] == [{"role": "user", "content": "Alone?"}]


def test_settings_that_make_no_sense_are_not_sent(page: Page, fake: Fake) -> None:
    """Would catch NaN or nothing at all in a request, and settings that never reach one."""
    page.goto("/")
    page.get_by_text("More settings").click()
    page.get_by_label("Temperature").fill("9")
    page.get_by_text("More settings").click()
    ask(page)
    expect(page.get_by_label("Temperature")).to_be_focused()
    assert not fake.asked
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Most tokens").fill("12")
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Ask").click()
    assert await_answer(page) == ANSWER
    sent = {name: fake.asked[0][name] for name in ("temperature", "max_tokens", "seed", "model")}
    assert sent == {"temperature": 0.5, "max_tokens": 12, "seed": 7, "model": "fake"}
    expect(page.locator(".spent")).to_contain_text("2.5 total variation")
    await_comparison(page)
    expect(page.locator(".race")).to_contain_text("sampled, so their words may differ")


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


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_text_model_takes_no_image_by_any_way(page: Page, fake: Fake, way: str) -> None:
    """Would catch an image that nobody sees in every question, which such a server refuses."""
    fake.images = False
    page.goto("/")
    expect(page.locator("#picture")).not_to_be_visible()
    put(page, way, picture(40, 30))
    put(page, way, b"no pixels")
    ask(page)
    assert await_answer(page) == ANSWER
    assert fake.asked[0]["messages"] == [{"role": "user", "content": "Where is the cross?"}]
    assert not page.locator("#image").get_attribute("src")


def test_pasted_text_is_no_image(page: Page) -> None:
    """Would catch text from a word processor, which sends a picture of it along, that ends the
    conversation, and an image file that is refused because its name comes along.
    """
    page.goto("/")
    page.get_by_label("Compare with plain decoding").uncheck()
    ask(page)
    assert await_answer(page) == ANSWER
    put(page, "paste", picture(40, 30), "a word")
    put(page, "paste", b"no pixels", "photo.png")
    expect(page.locator("#picture-error")).to_be_visible()
    expect(page.locator("#turns li")).to_have_count(1)
    expect(page.locator("#preview")).not_to_be_visible()
    put(page, "paste", picture(40, 30), "file:///tmp/photo.png")
    expect(page.locator("#preview")).to_be_visible()


def test_two_questions_before_the_model_is_known(page: Page, fake: Fake) -> None:
    """Would catch a question that is asked twice: the page is not answering yet when Enter comes
    again.
    """
    held: list[Route] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.goto("/", wait_until="domcontentloaded")
    page.get_by_label("Compare with plain decoding").uncheck()
    for _ in range(2):
        ask(page)
    page.wait_for_timeout(200)
    assert len(held) == 1
    page.unroute_all()
    assert await_answer(page) == ANSWER
    page.wait_for_timeout(200)
    assert len(fake.asked) == page.locator("#turns li").count() == 1


def test_no_more_tokens_than_the_server_gives(page: Page, fake: Fake) -> None:
    """Would catch a page whose every question is refused, for it asks for more by itself."""
    fake.max_tokens = 64
    page.goto("/")
    expect(page.locator("#model")).to_contain_text("fake")
    page.get_by_text("More settings").click()
    expect(page.get_by_label("Most tokens")).to_have_value("64")
    page.get_by_label("Most tokens").fill("65")
    ask(page)
    expect(page.get_by_label("Most tokens")).to_be_focused()
    assert not fake.asked


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
