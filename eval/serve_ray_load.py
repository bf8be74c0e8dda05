"""Requests for a server with replicas, and what became of them."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from specdec.demo import questions
from specdec.eval.load_prompts import image_part
from specdec.training.prompts import text_part

# Any, below: JSON values.

_TOKENS = 12  # of an answer


def bodies(images: int, rounds: int, *, skip: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Questions about images, in random order: different ones about each.

    Args:
        images: how many there are.
        rounds: questions about each.
        skip: images of the embedded set to leave out.
        seed: of the order.
    """
    alone = [question for question in questions() if len(question.images) == 1]
    files = list(dict.fromkeys(question.images[0] for question in alone))[skip : skip + images]
    texts = list(dict.fromkeys(question.prompt for question in alone))[:rounds]
    if len(files) < images or len(texts) < rounds:
        raise ValueError(f"the embedded model has no {rounds} questions for {images} images more")
    asked = []
    for file in files:
        image = image_part(file)
        for text in texts:
            turn = {"role": "user", "content": [image, text_part(text)]}
            asked.append({"model": "demo", "messages": [turn], "max_tokens": _TOKENS})
    random.Random(seed).shuffle(asked)
    return [body | {"temperature": 0} for body in asked]


async def hit_rate(client: httpx.AsyncClient, asked: Sequence[dict[str, Any]]) -> float:
    """Share of the prompts' tokens that was cached, when they are asked one after another."""
    prompt = cached = 0
    for body in asked:
        answer = await client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        usage = answer.json()["usage"]
        prompt += usage["prompt_tokens"]
        cached += usage["prompt_tokens_details"]["cached_tokens"]
    return cached / prompt


def by_replica(metrics: str) -> dict[str, int]:
    """Answers that every replica gave so far, whatever their end."""
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            counts[sample.labels["replica"]] += 0
            if sample.name == "specdec:request_success_total":
                counts[sample.labels["replica"]] += int(sample.value)
    return dict(counts)


class Load:
    """Asks all the time, every second one as a stream, while the context is open. Answers are
    greedy, so each has to be the first one to the same question again.

    Args:
        client: asks.
        asked: bodies, over and over.
        clients: how many ask at once.
    """

    def __init__(
        self, client: httpx.AsyncClient, asked: Sequence[dict[str, Any]], clients: int
    ) -> None:
        self._client, self._asked, self._clients = client, asked, clients
        self._ended: Counter[str] = Counter()
        self._said: dict[str, str] = {}  # the first answer, by question
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask(i)) for i in range(self._clients)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def answered(self, count: int) -> None:
        """Wait until as many more requests have ended."""
        until = self._ended.total() + count
        while self._ended.total() < until:
            await asyncio.sleep(0.05)

    def outcome(self) -> dict[str, Any]:
        """How many requests there were, and how many of them ended how."""
        return {"requests": self._ended.total(), "ended": dict(self._ended)}

    async def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            body = self._asked[number % len(self._asked)]
            try:
                self._ended[await self._one(body | {"stream": number % 2 == 0})] += 1
            except httpx.HTTPError as error:
                self._ended[type(error).__name__] += 1
            number += self._clients + 1

    async def _one(self, body: dict[str, Any]) -> str:
        """What became of it: ``ok``, or what went wrong, and whether that was told properly."""
        answer = await self._client.post("/v1/chat/completions", json=body)
        if answer.status_code != 200:
            return f"status {answer.status_code}, {answer.json()['error']['code']}"
        if not body["stream"]:
            (choice,) = answer.json()["choices"]
            return self._judge(body, choice["message"]["content"], choice["finish_reason"])
        *events, done = [line for line in answer.text.split("\n\n") if line]
        if done != "data: [DONE]":
            return "cut off"
        told = [json.loads(event.removeprefix("data: ")) for event in events]
        if "error" in told[-1]:
            return f"error event, {told[-1]['error']['code']}"
        choices = [choice for event in told for choice in event["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        return self._judge(body, text, choices[-1]["finish_reason"])

    def _judge(self, body: dict[str, Any], text: str, finish: str | None) -> str:
        if not finish:
            return "unfinished"
        question = json.dumps(body["messages"])
        return "ok" if self._said.setdefault(question, text) == text else "other answer"
