"""Server-sent events, and a response that ends with its reader."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:  # Any: JSON values
    """One event. What is no valid Unicode is escaped, so that it can be sent."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """Sends events as they come.

    Args:
        events: closed at the end, whatever ends it.
        at_end: called then, even if nobody ever read an event.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], at_end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._at_end = events, at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._at_end()
            await self._events.aclose()
