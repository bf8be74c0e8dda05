"""The playground in a browser, against the server itself and the model that comes with it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the serve extra is not installed")

from playwright.sync_api import Page, expect

import specdec
from specdec.demo import Demo, Question, load, questions
from specdec.serving import AsyncEngine
from specdec.serving.app import create_app
from specdec.serving.settings import Settings
from support.browsing import Visit, ask, await_answer, await_comparison, await_that, visiting
from support.fake_chat import served

EPSILON = 0.4
ABOUT = questions()[0]  # a sheet of handwriting


class Overheard:
    """An application, and the events of all answers that it streams."""

    def __init__(self, app: Any) -> None:  # Any: an ASGI application
        self._app = app
        self._streams: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # Any: ASGI's own types
        if scope.get("path") != "/v1/chat/completions":
            return await self._app(scope, receive, send)
        index = len(self._streams)
        self._streams.append(b"")

        async def hear(message: Any) -> None:
            self._streams[index] += message.get("body", b"")
            await send(message)

        await self._app(scope, receive, hear)

    def last(self, count: int) -> list[list[dict[str, Any]]]:  # Any: JSON values
        return [
            [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]
            for stream in self._streams[-count:]
        ]


class Running(NamedTuple):
    """A server.

    Attributes:
        demo: its model.
        engine: which answers.
        visit: of its page.
        slow: while set, every step of the model takes a while.
        heard: the events of its answers.
    """

    demo: Demo
    engine: AsyncEngine
    visit: Visit
    slow: threading.Event
    heard: Overheard


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    demo, slow = load(), threading.Event()

    def dawdle(*_: object) -> None:
        if slow.is_set():
            time.sleep(0.1)

    demo.model.get_output_embeddings().register_forward_pre_hook(dawdle)
    relaxed = specdec.Relaxed(EPSILON, reliance="divergence")
    engine = AsyncEngine(demo.model, demo.drafter, tree=4, acceptance=relaxed)
    settings = Settings(model="demo", drafter="text-only")
    heard = Overheard(create_app(engine, demo.processor, settings))
    with served(heard) as address, visiting(address) as visit:
        yield Running(demo, engine, visit, slow, heard)


@pytest.fixture
def page(running: Running) -> Iterator[Page]:
    """Opened, with the image that the question is about."""
    running.visit.begin()
    page = running.visit.page
    page.goto("/")
    page.locator("#file").set_input_files(ABOUT.images[0])
    expect(page.locator("#preview")).to_be_visible()
    yield page
    running.visit.check()


def answer_of(demo: Demo, question: Question) -> str:
    inputs = question.encode(demo.processor)
    ids = specdec.generate(demo.model, **inputs, drafter=demo.drafter, max_new_tokens=256)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return str(demo.processor.decode(new, skip_special_tokens=True))  # type: ignore[attr-defined]  # transformers declares it on the subclasses


def compared(running: Running) -> list[list[dict[str, Any]]]:  # Any: JSON values
    """Ask, and wait for the comparison; the events of both answers."""
    ask(running.visit.page, ABOUT.prompt)
    await_comparison(running.visit.page)
    return running.heard.last(2)


def test_the_answer_is_generates_own_and_the_figures_the_servers(
    running: Running, page: Page
) -> None:
    """Would catch an image that reaches the model other than it was chosen, tokens whose texts do
    not add up or that change places, colours of other tokens, and figures of another request.
    """
    page.get_by_role("slider", name="Acceptance").press("Home")
    fast, plain = compared(running)
    assert await_answer(page) == answer_of(running.demo, ABOUT)
    tokens = [
        token
        for chunk in fast
        for choice in chunk["choices"]
        for token in choice["specdec"]["tokens"]
    ]
    spans = page.locator("#turns .tokens span")
    seen = spans.evaluate_all("(all) => all.map((it) => [it.textContent, it.className])")
    assert seen == [[token["text"], token["origin"]] for token in tokens]
    assert {token["origin"] for token in tokens} == {"drafted", "verifier"}
    counts = fast[-1]["metrics"]["speculative_decoding"]
    assert counts["mean_acceptance_length"] > 1
    tau = page.locator(".tau dd").inner_text()
    assert float(tau) == pytest.approx(counts["mean_acceptance_length"], abs=0.005)
    seconds = [answer[-1]["metrics"]["generation_time_s"] for answer in (fast, plain)]
    ratio = float(page.locator(".speedup dd").inner_text().removesuffix("×"))
    assert ratio == pytest.approx(seconds[1] / seconds[0], abs=0.05)
    assert plain[-1]["metrics"]["speculative_decoding"]["num_draft_tokens"] == 0
    assert plain[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
    expect(page.locator(".race")).to_contain_text("Both answers are the same, token by token.")


def test_relaxed_tokens_and_what_they_spent_are_shown(running: Running, page: Page) -> None:
    """Would catch a slider that reaches no engine, and a bound that is shown and not spent."""
    fast, _ = compared(running)
    counts = fast[-1]["metrics"]["speculative_decoding"]
    assert counts["num_relaxed_tokens"] > 0
    assert page.locator("#turns .tokens .relaxed").count() == counts["num_relaxed_tokens"]
    spent = float(page.locator(".spent dd").inner_text())
    assert spent == pytest.approx(counts["bound_spent"], abs=0.005)
    assert page.locator("#turns .relaxed").first.get_attribute("title").endswith("of the bound")


def test_stopping_cancels_on_the_server_and_frees_its_pages(running: Running, page: Page) -> None:
    """Would catch an answer that goes on where nobody reads it, and a stopped one that keeps the
    next from being asked.
    """
    cancelled = running.engine.stats.cancelled
    running.slow.set()
    try:
        ask(page, ABOUT.prompt)
        await_that(page, "() => document.querySelectorAll('#turns .tokens span').length > 1")
        page.get_by_role("button", name="Stop").click()
        assert await_answer(page)
        until = time.monotonic() + 60
        while running.engine.stats.cancelled == cancelled and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        running.slow.clear()
    assert running.engine.stats.cancelled == cancelled + 1
    while running.engine.stats.pages_taken and time.monotonic() < until:
        time.sleep(0.02)
    assert running.engine.stats.pages_taken == 0
    expect(page.locator("#turns .note").first).to_contain_text("Stopped.")
    ask(page, ABOUT.prompt)
    assert await_answer(page, turn=1)


def test_a_drawing_made_in_the_browser_is_a_question_the_model_can_answer(page: Page) -> None:
    """Would catch a drawing that looks to the model like nothing it knows."""
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Use a drawing").click()
    page.get_by_role("button", name="What color is the cross?").click()
    assert "green" in await_answer(page)
