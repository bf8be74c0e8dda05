"""An application that has others answer: what comes from outside is checked here, then passed on.

Knows nothing of who carries calls to replicas and back; see :mod:`specdec.serving.ray_app`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import NamedTuple

from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from specdec.serving import errors, guard
from specdec.serving.affinity import key_of
from specdec.serving.calls import Call, Head
from specdec.serving.errors import ApiError
from specdec.serving.events import DONE, event
from specdec.serving.metrics import CONTENT_TYPE
from specdec.serving.service import unless_gone
from specdec.serving.settings import Settings

Answer = AsyncGenerator[Head | bytes, None]
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_TRIES = 3
_UNABLE = 503  # a replica whose engine has failed, or that is about to end; others may do
_PROBES = ("/health", "/ready")
_PROBE_SECONDS = 5.0
_SPARE_SECONDS = 30.0  # an answer's own time limit comes first


class Lost(Exception):
    """Whoever was to answer is not there any more, and whether it had begun is not known."""


class _Opened(NamedTuple):
    head: Head
    held: Sequence[bytes]  # of the body, not sent yet
    rest: Answer


def create_relay(
    ask: Callable[[Call], Answer], metrics: Callable[[], Awaitable[bytes]], settings: Settings
) -> FastAPI:
    """An application that checks keys and sizes, and answers with what `ask` gives.

    Args:
        ask: has a replica answer; raises :class:`Lost`, or :class:`ApiError`.
        metrics: of all replicas.
        settings: the operator's.
    """
    app = FastAPI(title="specdec", openapi_url=None, docs_url=None, redoc_url=None)
    errors.install(app)
    guard.install(app, settings)
    relay = Relay(ask, settings)

    @app.get("/metrics")
    async def merged() -> Response:
        return Response(await metrics(), media_type=CONTENT_TYPE)

    app.add_route("/{path:path}", relay.respond, methods=_METHODS)
    return app


class Relay:
    """Passes calls on, and asks again while nothing of an answer has been sent."""

    def __init__(self, ask: Callable[[Call], Answer], settings: Settings) -> None:
        self._ask, self._settings = ask, settings

    async def respond(self, request: Request) -> Response:
        """A replica's response.

        Raises:
            ApiError: there is none.
            ClientGone: nobody waits for it.
        """
        body = await request.body()
        post = request.method == "POST"
        key = await asyncio.to_thread(key_of, body) if post else None
        headers = tuple((bytes(name), bytes(value)) for name, value in request.headers.raw)
        scope = request.scope  # `request.url` leaves characters out that the guard has seen
        call = Call(request.method, scope["path"], scope["query_string"], headers, body, key)
        call = call._replace(name=scope[guard.REQUEST])
        opened = await unless_gone(request, self._open(call))
        return _Relayed(opened)

    async def _open(self, call: Call) -> _Opened:
        probe = call.path in _PROBES
        refusal: _Opened | None = None
        limit = _PROBE_SECONDS if probe else self._settings.request_seconds + _SPARE_SECONDS
        try:
            async with asyncio.timeout(limit):
                for _ in range(_TRIES):
                    try:
                        opened = await _begin(self._ask(call))
                    except Lost:
                        continue
                    if probe or opened.head.status != _UNABLE:
                        return opened
                    refusal = opened
                    call = call._replace(tried=(*call.tried, opened.head.by))
        except TimeoutError as error:
            raise _nobody("no replica answered in time; ask again later") from error
        if refusal is not None:
            return refusal
        raise _nobody(f"{_TRIES} replicas ended while they answered this; ask again later")


async def _begin(answer: Answer) -> _Opened:
    """Read until there is something that a second replica would not say in the same way; what a
    replica says that is unable to answer, to its end.
    """
    head: Head | None = None
    held: list[bytes] = []
    try:
        async for part in answer:
            if isinstance(part, Head):
                head = part
                continue
            held.append(part)
            if head is not None and head.status != _UNABLE and _tells(part):
                break
        if head is None:
            raise Lost("an answer without a beginning")
    except BaseException:
        await answer.aclose()
        raise
    return _Opened(head, held, answer)


def _tells(part: bytes) -> bool:
    """Whether there is more in it than that an assistant is about to speak. In JSON a quote within
    a text is escaped, so that this is no text's.
    """
    return any(b'"role":' not in piece for piece in part.split(b"\n\n") if piece)


def _nobody(message: str) -> ApiError:
    return ApiError(503, message, code="no_replica", headers={"Retry-After": "5"})


class _Relayed(StreamingResponse):
    """A replica's response. Whatever ends it ends the replica's work, too."""

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        self._events = self._body()
        super().__init__(self._events, status_code=opened.head.status)
        self.raw_headers = list(opened.head.headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            await self._opened.rest.aclose()

    async def _body(self) -> AsyncGenerator[bytes, None]:
        for part in self._opened.held:
            yield part
        try:
            async for more in self._opened.rest:
                assert isinstance(more, bytes), "an answer has one beginning"
                yield more
        except Lost:
            if not self._is_stream():
                raise  # the connection ends, which tells the client that something is missing
            yield event(_nobody("the replica ended in the middle of this answer").body())
            yield DONE

    def _is_stream(self) -> bool:
        kinds = [value for name, value in self._opened.head.headers if name == b"content-type"]
        return any(kind.startswith(b"text/event-stream") for kind in kinds)
