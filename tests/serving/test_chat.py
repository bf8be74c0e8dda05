"""Prompts of clients, on their way to the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from specdec import prompts
from specdec.demo import Demo
from specdec.serving.chat import Prompts
from specdec.serving.errors import ApiError
from specdec.serving.images import ImageReader
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
        with pytest.raises(ApiError, match="at least 5. tokens, this server takes 50") as caught:
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
