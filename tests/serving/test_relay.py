"""What an ingress does with a replica's answers, and with replicas that end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from specdec.serving.calls import Call, Head, answer
from specdec.serving.errors import ApiError
from specdec.serving.merged_metrics import merged
from specdec.serving.relay import Answer, Lost, create_relay
from specdec.serving.settings import Settings

EVENTS = Head(200, ((b"content-type", b"text/event-stream"),))
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
WORD = b'data: {"choices":[{"delta":{"content":"\\"role\\":"}}]}\n\n'
CHAT = "/v1/chat/completions"


class Replicas:
    """Answers call after call as it was told; an exception is raised in its place."""

    def __init__(self, *answers: list[Head | bytes | Exception]) -> None:
        self.answers, self.calls, self.closed = list(answers), list[Call](), 0

    async def ask(self, call: Call) -> Answer:
        self.calls.append(call)
        try:
            for part in self.answers[len(self.calls) - 1]:
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.closed += 1


def _get(replicas: Replicas, settings: Settings | None = None, **how: object) -> httpx.Response:
    async def metrics() -> bytes:
        return merged(
            {
                "a": b"# TYPE x_total counter\nx_total 1\n",
                "b": b"# TYPE x_total counter\nx_total 2\n",
            }
        )

    app = create_relay(replicas.ask, metrics, settings or Settings())

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=headers
        ) as client:
            return await client.request(**{"method": "POST", "url": CHAT, **how})

    return asyncio.run(ask())


def test_passes_on() -> None:
    """Catches a status, header, query or body that gets lost on the way."""
    replicas = Replicas([Head(418, ((b"x-of", b"a replica"),)), b"tea", b"pot"])
    told = _get(replicas, url="/v1/x?y=%20z", content=b'{"prompt": "a"}', headers={"X-My": "own"})
    assert (told.status_code, told.headers["x-of"], told.text) == (418, "a replica", "teapot")
    (call,) = replicas.calls
    assert (call.method, call.path, call.query) == ("POST", "/v1/x", b"y=%20z")
    assert (b"x-my", b"own") in call.headers
    assert call.body == b'{"prompt": "a"}'
    assert call.key is not None
    assert replicas.closed == 1


@pytest.mark.parametrize("begun", [[], [EVENTS], [EVENTS, ROLE], [EVENTS, ROLE + ROLE]])
def test_asks_again(begun: list[Head | bytes | Exception]) -> None:
    """Catches a request that fails with its replica, though nothing of its answer was sent."""
    replicas = Replicas([*begun, Lost()], [EVENTS, ROLE, WORD])
    told = _get(replicas)
    assert told.content == ROLE + WORD
    assert len(replicas.calls) == replicas.closed == 2


def test_ends_a_stream_that_has_begun() -> None:
    """Catches words that are said twice, and a stream that ends as if that were all."""
    replicas = Replicas([EVENTS, ROLE, WORD, Lost()], [EVENTS, ROLE, WORD])
    told = _get(replicas)
    assert len(replicas.calls) == replicas.closed == 1
    said, error, done = told.content.removeprefix(ROLE).split(b"\n\n")[:3]
    assert said + b"\n\n" == WORD
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "no_replica"
    assert done == b"data: [DONE]"


def test_gives_up() -> None:
    """Catches a request that kills replica after replica, for ever."""
    replicas = Replicas(*([Lost()] for _ in range(9)))
    told = _get(replicas)
    assert (told.status_code, told.headers["retry-after"]) == (503, "5")
    assert told.json()["error"]["type"] == "service_unavailable_error"
    assert len(replicas.calls) == 3


def test_refusals() -> None:
    """Catches strangers and bodies that get as far as a replica, and errors not in OpenAI's shape,
    those of the way to a replica included.
    """
    replicas = Replicas([ApiError(429, "busy", code="queue_full", headers={"Retry-After": "5"})])
    settings = Settings(api_keys=("key",), max_body_bytes=10)
    stranger = _get(replicas, settings)
    assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "invalid_api_key")
    assert _get(replicas, settings, method="GET", url="/metrics").status_code == 401
    known = {"Authorization": "Bearer key"}
    assert _get(replicas, settings, content=b"x" * 11, headers=known).status_code == 413
    assert not replicas.calls
    busy = _get(replicas, settings, headers=known)
    assert (busy.status_code, busy.json()["error"]["code"]) == (429, "queue_full")


def test_metrics() -> None:
    """Catches replicas whose figures overwrite each other's."""
    lines = _get(Replicas(), method="GET", url="/metrics").text.splitlines()
    assert 'x_total{replica="a"} 1.0' in lines
    assert 'x_total{replica="b"} 2.0' in lines
    assert sum(line.startswith("# TYPE x_total ") for line in lines) == 1


def _of_app(serve: Callable[[Request], Awaitable[StreamingResponse]]) -> FastAPI:
    app = FastAPI()
    app.add_route("/x", serve, methods=["POST"])
    return app


def test_answer_of_an_application() -> None:
    """Catches a body that does not arrive, and pieces that wait for the answer's end."""

    async def main() -> list[Head | bytes]:
        go = asyncio.Event()

        async def words(body: bytes) -> AsyncGenerator[bytes, None]:
            yield body
            await go.wait()
            yield b"end"

        async def serve(request: Request) -> StreamingResponse:
            return StreamingResponse(words(await request.body()), 201, {"x-y": "z"})

        parts: list[Head | bytes] = []
        async for part in answer(_of_app(serve), Call("POST", "/x", body=b"begin")):
            parts.append(part)
            if part == b"begin":
                go.set()
        return parts

    head, *body = asyncio.run(asyncio.wait_for(main(), 60))
    assert head == Head(201, ((b"x-y", b"z"),))
    assert body == [b"begin", b"end"]


def test_reader_hangs_up() -> None:
    """Catches an application that goes on computing for nobody."""

    async def main() -> bool:
        ended = asyncio.Event()

        async def words() -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield b"word"
                    await asyncio.sleep(0.01)
            finally:
                ended.set()

        async def serve(request: Request) -> StreamingResponse:
            return StreamingResponse(words())

        parts = answer(_of_app(serve), Call("POST", "/x"))
        await anext(parts)
        await anext(parts)
        await parts.aclose()
        await asyncio.wait_for(ended.wait(), 30)
        return ended.is_set()

    assert asyncio.run(main())
