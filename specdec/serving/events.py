"""Server-sent events, and a response that ends with its reader."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from specdec.serving.service import ClientGone

DONE = b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:  # Any: JSON values
    """One event. What is no valid Unicode is escaped, so that it can be sent."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """Sends events as they come.

    Args:
        events: closed at the end, whatever ends it.
        at_end: called then, even if nobody ever read an event.
        seconds: after which a reader who has not read all of it is hung up on.

    Raises:
        ClientGone: instead of sending on, after that time.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], at_end: Callable[[], None], seconds: float
    ) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._at_end, self._seconds = events, at_end, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError as error:
            raise ClientGone from error
        finally:
            self._at_end()
            await self._events.aclose()
