"""The playground in a browser, against a server that does what a test tells it."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the serve extra is not installed")

from PIL import Image
from playwright.sync_api import Page, expect

from support.browsing import Visit, await_answer, await_comparison, await_that, visiting
from support.fake_chat import PAGE, TOKENS, Fake, app, served

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
ANSWER = "".join(text for text, _, _ in TOKENS)


@pytest.fixture(scope="module")
def one_fake() -> Fake:
    return Fake()


@pytest.fixture(scope="module")
def one_visit(one_fake: Fake) -> Iterator[Visit]:
    with served(app(one_fake)) as address, visiting(address) as visit:
        yield visit


@pytest.fixture
def fake(one_fake: Fake) -> Fake:
    one_fake.reset()
    return one_fake


@pytest.fixture
def visit(one_visit: Visit, fake: Fake) -> Iterator[Visit]:
    """Not opened yet, so that a test can say first what it meets."""
    one_visit.begin()
    one_visit.page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]  # a TypedDict of theirs
    yield one_visit
    one_visit.check()


@pytest.fixture
def page(visit: Visit) -> Page:
    return visit.page


def ask(page: Page, question: str = "Where is the cross?") -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.keyboard.press("Enter")


def answered(page: Page, *, turn: int = 0) -> None:
    assert await_answer(page, turn) == ANSWER


def test_tokens_show_their_origin_and_the_figures_those_of_the_server(
    page: Page, fake: Fake
) -> None:
    """Would catch origins that are told apart by nothing but their colour, or not at all, figures
    of another answer, and a ratio upside down: 25 ms a token plainly, 10 ms with drafts.
    """
    page.goto("/")
    page.get_by_role("button", name="Use a drawing").click()
    ask(page)
    answered(page)
    await_comparison(page)
    spans = page.locator("#turns .tokens span")
    assert [span.get_attribute("class") for span in spans.all()] == [o for _, o, _ in TOKENS]
    style = "(span) => getComputedStyle(span).textDecorationStyle"
    assert [spans.nth(at).evaluate(style) for at in (0, 1, 2)] == ["dotted", "solid", "dashed"]
    expect(page.locator(".tau dd")).to_have_text("2.75")
    expect(page.locator(".spent")).to_contain_text("bound spent, of 2.5 nats of regret")
    expect(page.locator(".spent dd")).to_have_text("0.12")
    expect(page.locator(".speedup dd")).to_have_text("2.50×")
    expect(page.locator(".race")).to_contain_text("Both answers are the same, token by token.")
    expect(page.get_by_text("11 tokens: 6 drafted, 1 relaxed, 4 the model’s own.")).to_be_visible()
    page.get_by_text("More figures").click()
    expect(page.locator("details dl").last).to_contain_text("1 in 1 step, 2 in 3 steps")
    expect(page.locator("#said")).to_contain_text("2.50× as fast")
    question, plain = fake.asked
    assert question["specdec"] == {"policy": "operator", "epsilon": 0.3, "origins": True}
    assert plain["specdec"] == {"policy": "lossless", "drafts": False, "origins": True}
    assert {**question, "specdec": None} == {**plain, "specdec": None}


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
        answered(page, turn=turn)
    slider.press("Home")
    ask(page)
    answered(page, turn=2)
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
    answered(page)
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
    answered(page)
    ask(page, "And then?")
    answered(page, turn=1)
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
    answered(page)
    assert fake.asked[2]["messages"] == [{"role": "user", "content": "Alone?"}]


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
    answered(page)
    kind, sent = sent_image(fake)
    assert (kind, sent.size) == (
        ("image/jpeg", (1568, 16)) if way == "drop" else ("image/png", (40, 30))
    )


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
    answered(page)
    kept = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
    assert "sesame" not in page.evaluate(kept)


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
    answered(page)
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
        answered(page, turn=turn if status else turn + 1)
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
    answered(page)
    sent = {name: fake.asked[0][name] for name in ("temperature", "max_tokens", "seed", "model")}
    assert sent == {"temperature": 0.5, "max_tokens": 12, "seed": 7, "model": "fake"}
    expect(page.locator(".spent")).to_contain_text("2.5 total variation")
    await_comparison(page)
    expect(page.locator(".race")).to_contain_text("sampled, so their words may differ")


def test_a_narrow_phone_scrolls_down_only(visit: Visit, fake: Fake) -> None:
    """Would catch anything wider than 360 pixels, in every state of the page."""
    page = visit.page
    visit.expected.append("429")
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]  # a TypedDict of theirs
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
    wide = "[document.documentElement.scrollWidth, document.body.scrollWidth]"
    assert page.evaluate(wide) <= [PHONE["width"], PHONE["width"]]


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


# --- without a browser ---

NEEDED = {  # of a colour on another: 4.5 for text, 3 for what else has to be seen (WCAG AA)
    4.5: [
        *(
            (text, ground)
            for text in ("text", "dim", "wrong", "accent")
            for ground in ("page", "soft")
        ),
        ("text", "drafted"),
        ("text", "relaxed"),
        ("on-accent", "accent"),
    ],
    3.0: [
        ("drafted-line", "page"),
        ("drafted-line", "drafted"),
        ("relaxed-line", "page"),
        ("relaxed-line", "relaxed"),
        ("verifier-line", "page"),
        ("edge", "page"),
        ("edge", "soft"),
        ("theirs", "page"),
        ("accent", "drafted"),
    ],
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_contrast(scheme: str) -> None:
    """Would catch a colour that cannot be read, in light or in dark."""
    light, dark = re.findall(r":root \{(.*?)\}", (PAGE / "page.css").read_text(), re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", light if scheme == "light" else dark))
    for least, pairs in NEEDED.items():
        for one, other in pairs:
            ratio = contrast(colors[one], colors[other])
            assert ratio >= least, f"{one} on {other}: {ratio:.2f}"


def contrast(one: str, other: str) -> float:
    """Of WCAG 2: (L + 0.05) / (L' + 0.05)."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    """Would catch a script, style or address that the page's policy forbids in a browser that no
    test runs.
    """
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    for file in sorted(PAGE.iterdir()):
        addresses = re.findall(r"https?://[^\s'\"`]+", file.read_text())
        assert addresses in ([], ["http://www.w3.org/2000/svg"]), file.name
    assert {file.suffix for file in PAGE.iterdir()} == {".html", ".css", ".js"}


def picture(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(stream, "PNG")
    return stream.getvalue()


def sent_image(fake: Fake) -> tuple[str, Image.Image]:
    part = fake.asked[0]["messages"][0]["content"][0]
    head, data = part["image_url"]["url"].split(";base64,")
    return head.removeprefix("data:"), Image.open(io.BytesIO(b64decode(data)))


def put(page: Page, way: str, data: bytes) -> None:
    """An image, onto the page."""
    if way == "choose":
        file: Any = {"name": "photo.png", "mimeType": "image/png", "buffer": data}
        page.locator("#file").set_input_files(file)
        return
    transfer = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "photo.png", {type: "image/png"}));
            return transfer;
        }""",
        list(data),
    )
    if way == "paste":
        paste = "(data) => dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}))"
        page.evaluate(paste, transfer)
        return
    event = {"dataTransfer": transfer}
    page.locator("#talk").dispatch_event("dragover", event)
    assert page.locator("body.over").count() == 1
    page.locator("#talk").dispatch_event("drop", event)


def test_the_wheel_has_the_page() -> None:
    """Would catch a file of the page that the index names and nobody wrote."""
    named = re.findall(r'(?:href|src)="([\w.]+)"', (PAGE / "index.html").read_text())
    named += [
        name
        for file in PAGE.glob("*.js")
        for name in re.findall(r'from "\./(.+)"', file.read_text())
    ]
    assert {Path(name).name for name in named} == {file.name for file in PAGE.iterdir()} - {
        "index.html"
    }
