"""Asking an application in another process: a request as one value, its answer as a stream.

Knows ASGI, and nothing of what carries values from one process to the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Scope

from specdec.serving.guard import REQUEST


class Call(NamedTuple):
    """A request.

    Attributes:
        method: of HTTP.
        path: without the query.
        query: without the question mark.
        headers: names in lower case.
        body: all of it.
        key: requests with the same one are best answered in the same place.
        name: the id that the log has of it, here and there.
        tried: names of who could not answer it, and should be asked last.
    """

    method: str
    path: str
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    key: str | None = None
    name: str = ""
    tried: tuple[str, ...] = ()


class Head(NamedTuple):
    """What an answer begins with; pieces of its body follow.

    Attributes:
        by: who answers, as `Call.tried` has it.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    by: str = ""


async def answer(app: ASGIApp, call: Call) -> AsyncGenerator[Head | bytes, None]:
    """What `app` answers; what it sends before anybody takes it comes in one piece.

    Whoever stops reading before the end has hung up, as far as `app` is concerned.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    running = asyncio.ensure_future(_run(app, call, sent))
    try:
        while (message := await sent.get()) is not None:
            if message["type"] == "http.response.start":
                headers = tuple((bytes(k), bytes(v)) for k, v in message["headers"])
                yield Head(message["status"], headers)
                continue
            ended, body = False, bytes(message.get("body", b""))
            while not (ended or sent.empty()):
                message = sent.get_nowait()
                ended = message is None
                body += b"" if message is None else message.get("body", b"")
            if body:
                yield body
            if ended:
                break
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _run(app: ASGIApp, call: Call, sent: asyncio.Queue[Message | None]) -> None:
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": call.method,
        "path": call.path,
        "raw_path": call.path.encode(),
        "query_string": call.query,
        "root_path": "",
        "headers": list(call.headers),
        "client": None,
        "server": None,
    }
    if call.name:
        scope[REQUEST] = call.name
    read = False

    async def receive() -> Message:
        nonlocal read
        if read:
            await asyncio.Event().wait()  # a reader that leaves cancels this
        read = True
        return {"type": "http.request", "body": call.body, "more_body": False}

    async def send(message: Message) -> None:
        sent.put_nowait(message)

    try:
        await app(scope, receive, send)
    finally:
        sent.put_nowait(None)
