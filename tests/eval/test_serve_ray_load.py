"""What becomes of requests to replicas, without any."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from specdec.eval.serve_ray_load import Load, bodies


def _whole(text: str) -> httpx.Response:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    return httpx.Response(200, json={"choices": [choice]})


def _pieces(text: str) -> httpx.Response:
    """A piece a character, behind one without text, as a server begins."""
    deltas: list[dict[str, str]] = [{"role": "assistant"}, *({"content": each} for each in text)]
    events: list[dict[str, Any]] = [
        {"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    events[-1]["choices"][0]["finish_reason"] = "stop"
    lines = [f"data: {json.dumps(event)}" for event in events]
    return httpx.Response(200, text="\n\n".join([*lines, "data: [DONE]", ""]))


@pytest.mark.parametrize(
    ("wrong", "ended"),
    [(None, {"ok"}), ("whole", {"ok", "other answer"}), ("pieces", {"ok", "other answer"})],
)
def test_other_answers_are_told(wrong: str | None, ended: set[str]) -> None:
    """A replica that answers something else than the others, whole or as a stream: a reason to end
    is all that was looked at.
    """
    asked = bodies(2, 2)
    texts = {json.dumps(body["messages"]): f"answer {n}" for n, body in enumerate(asked)}
    count = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        await asyncio.sleep(0)
        body = json.loads(request.content)
        kind = "pieces" if body["stream"] else "whole"
        text = texts[json.dumps(body["messages"])] + "!" * (kind == wrong and count > 8)
        return _pieces(text) if body["stream"] else _whole(text)

    async def main() -> dict[str, int]:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://ray") as client:
            async with Load(client, asked, 2) as load:
                await load.answered(40)
            found: dict[str, int] = load.outcome()["ended"]
            return found

    assert set(asyncio.run(main())) == ended
