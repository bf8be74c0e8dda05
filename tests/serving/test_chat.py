"""Prompts of clients, on their way to the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from specdec import AsyncEngine, prompts
from specdec.demo import Demo
from specdec.engine import Limits
from specdec.serving.app import create_app
from specdec.serving.chat import Prompts
from specdec.serving.errors import ApiError
from specdec.serving.images import Encoded, ImageReader
from specdec.serving.schema import Message, Tool, ToolFunction
from specdec.serving.settings import Settings

MOST = 50  # tokens of a prompt


class Sealed(list[int]):
    """Has a length, and is not to be looked through."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("somebody looked")


@pytest.fixture
def encoder(demo: Demo) -> Iterator[Prompts]:
    settings = Settings(max_prompt_tokens=MOST)
    there = Prompts(demo.model, demo.processor, settings, ImageReader())
    yield there
    there.close()


def test_what_is_far_too_long_is_not_encoded(
    encoder: Prompts, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a prompt of a MiB that is looked through, for seconds, only to be refused: by the
    event loop, or by the one thread that encodes for everybody.
    """

    def encodes(*given: Any) -> Any:
        raise AssertionError("it was encoded")

    monkeypatch.setattr(prompts, "from_text", encodes)
    monkeypatch.setattr(prompts, "from_chat", encodes)
    longest = max(map(len, demo.processor.tokenizer.get_vocab()))
    text = "a" * (longest * (MOST + 1))
    user = Message(role="user", content="a")
    tool = Tool(type="function", function=ToolFunction(name="a", parameters={"a": [{"b": text}]}))
    template = "{{ tools }}"  # which this model's has no place for
    monkeypatch.setattr(demo.processor, "chat_template", template)
    for asked in (
        encoder.of_ids(Sealed([1] * (MOST + 1))),
        encoder.of_text(text),
        encoder.of_chat([Message(role="user", content=text)], None),
        encoder.of_chat([user, Message(role="user", content=[{"type": "text", "text": text}])], ()),
        encoder.of_chat([user], [tool]),
    ):
        with pytest.raises(ApiError, match=r"at least 5. tokens, this server takes 50") as caught:
            asyncio.run(asked)
        assert caught.value.code == "context_length_exceeded"


def test_prompts_are_looked_through_beside_the_event_loop(
    encoder: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch checks of every token in the thread that everybody waits for."""
    threads = []
    room = prompts.answer_room

    def watched(*given: Any) -> int:
        threads.append(threading.current_thread().name)
        return room(*given)

    monkeypatch.setattr(prompts, "answer_room", watched)
    asyncio.run(encoder.of_ids([1, 2]))
    asyncio.run(encoder.of_text("row"))
    assert [name.startswith("specdec-prompts") for name in threads] == [True, True]


def test_no_prompt_is_not_a_long_one(encoder: Prompts) -> None:
    """Would catch an empty prompt that is called too long, which clients answer by shortening."""
    with pytest.raises(ApiError, match="no tokens") as caught:
        asyncio.run(encoder.of_ids([]))
    assert (caught.value.param, caught.value.code) == ("prompt", "empty_prompt")


class Counting(ImageReader):
    """Counts the requests whose images are there as pixels; each has one."""

    def __init__(self) -> None:
        super().__init__()
        self.there = self.most = 0

    async def decode(self, image: Encoded) -> Image.Image:
        self.there += 1
        self.most = max(self.most, self.there)
        return await super().decode(image)


def test_few_requests_have_their_images_as_pixels(
    demo: Demo, messages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch images of all connections in memory at once, each hundreds of times as large as
    what was sent.
    """
    reader, encode = Counting(), prompts.from_chat

    def encodes(*given: Any) -> Any:
        try:
            return encode(*given)
        finally:
            reader.there -= 1

    monkeypatch.setattr(prompts, "from_chat", encodes)
    encoder = Prompts(demo.model, demo.processor, Settings(), reader)
    asked = [Message.model_validate(message) for message in messages]

    async def everybody() -> list[Any]:
        return await asyncio.gather(*(encoder.of_chat(asked, None) for _ in range(8)))

    answers = asyncio.run(everybody())
    encoder.close()
    assert all("pixel_values" in inputs for inputs in answers)
    assert reader.most == 2


class Slow(ImageReader):
    """Fetches nothing before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.may = asyncio.Event()

    async def fetch(self, url: str) -> Encoded:
        self.asked += 1
        await self.may.wait()
        return await super().fetch(url)


def test_who_is_being_read_waits_as_well(demo: Demo, messages: list[dict[str, Any]]) -> None:
    """Would catch a queue that is full only once prompts are encoded: any number of requests could
    have theirs fetched and decoded, to be refused behind that.
    """
    body = {"model": "demo", "messages": messages, "max_tokens": 2}

    async def everybody() -> tuple[list[int], int]:
        engine = AsyncEngine(demo.model, limits=Limits(max_batch=1, max_waiting=1))
        reader = Slow()
        app = create_app(engine, demo.processor, Settings(model="demo"), images=reader)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client, engine:
            asked = [
                asyncio.ensure_future(client.post("/v1/chat/completions", json=body))
                for _ in range(5)
            ]
            while reader.asked + sum(each.done() for each in asked) < 5:
                await asyncio.sleep(0.01)
            fetched = reader.asked
            reader.may.set()
            statuses = [(await each).status_code for each in asked]
            statuses.append((await client.post("/v1/chat/completions", json=body)).status_code)
        return statuses, fetched

    statuses, fetched = asyncio.run(everybody())
    assert statuses == [200, 200, 429, 429, 429, 200]
    assert fetched == 2
