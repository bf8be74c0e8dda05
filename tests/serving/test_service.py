"""What the routes of a server share."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from specdec.serving.service import unless_gone


def test_a_result_that_nobody_takes_is_dropped() -> None:
    """Would catch answers that go on for nobody: they were submitted in the turn of the event loop
    in which the call was cancelled.
    """
    dropped: list[str] = []
    working: list[asyncio.Task[str] | None] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def submit() -> str:
        working.append(asyncio.current_task())
        return "answers"

    async def run() -> None:
        request = Request({"type": "http"}, receive)
        call = asyncio.ensure_future(unless_gone(request, submit(), dropped.append))
        while not working or (task := working[0]) is None or not task.done():
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(run())
    assert dropped == ["answers"]
