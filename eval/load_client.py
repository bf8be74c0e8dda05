"""Clients of a server under load: each asks, reads, sometimes hangs up, and asks again.

How fast the server is decides how far they come. Knows nothing of right and wrong answers.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from specdec.eval.load_orders import Order, Outcome

# Any, below: JSON values.

_PATH = "/v1/chat/completions"
_PATIENCE = 300.0  # seconds without a byte, after which an answer counts as failed


class Client:
    """One connection's worth of requests at a time.

    Args:
        http: sends, to the server's address.
        model: its name there.
        messages: of every prompt.
        until: by ``time.perf_counter``; what has begun then is still read to its end.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        model: str,
        messages: Sequence[Sequence[Any]],
        until: float = float("inf"),
    ) -> None:
        self._http, self._model, self._messages = http, model, messages
        self._until = until

    async def run(self, orders: Iterator[Order]) -> list[Outcome]:
        """One order after another, until it is time."""
        outcomes = []
        while time.perf_counter() < self._until:
            outcomes.append(await self.ask(next(orders)))
        return outcomes

    async def ask(self, order: Order) -> Outcome:
        """One order; where the server has no room, it is asked again when it says to."""
        outcome = Outcome(order, asked=time.perf_counter())
        while True:
            outcome.refused = time.perf_counter() - outcome.asked
            try:
                wait = await asyncio.wait_for(self._once(outcome), order.seconds)
            except TimeoutError:
                wait, outcome.end = None, "hung up"
            except (httpx.HTTPError, ValueError, KeyError) as error:
                wait, outcome.end = None, "failed"
                outcome.detail = outcome.detail or f"{type(error).__name__}: {error}"
            outcome.seconds = time.perf_counter() - outcome.asked
            if wait is None:
                return outcome
            outcome.refusals += 1
            left = self._until - time.perf_counter()
            await asyncio.sleep(max(0.0, min(wait, left)))
            if wait > left:
                outcome.end = "refused"
                return outcome

    async def _once(self, outcome: Outcome) -> float | None:
        """Send it and read the answer; seconds to wait if there is no room for it."""
        order = outcome.order
        outcome.status = 0
        outcome.texts = [""] * order.samples
        outcome.finish = [None] * order.samples
        body = order.body(self._model, self._messages[order.prompt])
        async with self._http.stream("POST", _PATH, json=body, timeout=_PATIENCE) as response:
            outcome.status = response.status_code
            if response.status_code == 429:
                await response.aread()
                return float(response.headers["Retry-After"])
            if response.status_code != 200:
                outcome.detail = (await response.aread()).decode(errors="replace")[:300]
                return None
            if order.stream:
                await self._follow(response, outcome)
            else:
                _take(json.loads(await response.aread()), outcome, "message")
                outcome.end = "whole"
        return None

    async def _follow(self, response: httpx.Response, outcome: Outcome) -> None:
        """Read a stream, up to where the client hangs up."""
        stop, last, seen = outcome.order.pieces, [0.0] * outcome.order.samples, 0
        if stop == 0:
            outcome.end = "hung up"
            return
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                outcome.end = "whole"
                return
            if not line.startswith("data: "):
                continue
            now = time.perf_counter()
            for index in _take(json.loads(line[6:]), outcome, "delta"):
                seen += 1
                if outcome.first is None:
                    outcome.first = now - outcome.asked
                if last[index]:
                    outcome.gaps.append(now - last[index])
                last[index] = now
            if stop is not None and seen >= stop:
                outcome.end = "hung up"
                return
        raise ValueError("the stream ended without [DONE]")


def _take(event: dict[str, Any], outcome: Outcome, field: str) -> list[int]:
    """Note what a response, or an event of a stream, says; which answers got text."""
    if "error" in event:
        raise ValueError(f"the server reports {event['error']}")
    grown = []
    for choice in event["choices"]:
        index, text = choice["index"], choice[field].get("content") or ""
        if text:
            outcome.texts[index] += text
            grown.append(index)
        if choice["finish_reason"] is not None:
            outcome.finish[index] = choice["finish_reason"]
    if usage := event.get("usage"):
        outcome.tokens = usage["completion_tokens"]
        outcome.cached = usage["prompt_tokens_details"]["cached_tokens"]
    if metrics := event.get("metrics"):
        outcome.speculation = metrics["speculative_decoding"]
    return grown
