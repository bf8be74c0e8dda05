"""What every request passes: who may ask and how much; an id, a line in the log, no surprises.

Written against ASGI itself, so that requests are refused before their bodies are read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specdec.serving.errors import ApiError, internal
from specdec.serving.service import ClientGone
from specdec.serving.settings import Settings

access = logging.getLogger("specdec.serving.access")

USAGE = "specdec.usage"  # in a scope: gives the tokens of its answers
CUT_OFF = "specdec.cut_off"  # likewise: the code of the error that ended its stream
_GUARDED = ("/v1/", "/metrics")
_GONE = 499  # nginx's number for a client that hung up; only in the log
_BODY_SECONDS = 60.0  # a whole request has to be sent in


def install(app: FastAPI, settings: Settings) -> None:
    """Have all requests of `app` pass here; what is added last comes first."""
    app.add_middleware(Guard, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_middleware(Access)


class Access:
    """Numbers requests, logs them without anything that users wrote, and reports what nobody
    caught.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, name, status = time.monotonic(), uuid4().hex[:16], 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = name
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except ClientGone:
            status = _GONE
        except Exception as error:
            told = internal(error)
            if not status:
                await told.response()(scope, receive, tell)
        finally:
            access.info("%s", _line(scope, status or _GONE, time.monotonic() - began, name))


class Guard:
    """Refuses strangers, names that are not the server's own, and what is too large or too slow."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            if refusal := self._refusal(scope, Headers(scope=scope)):
                await refusal.response()(scope, receive, send)
                return
            receive = _Limited(receive, self._settings.max_body_bytes)
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        allowed = self._settings.allowed_hosts
        if "*" not in allowed and _host(headers.get("host", "")) not in allowed:
            return ApiError(400, "this server does not go by that Host", code="invalid_host")
        # Within another application, which may have it under a path, its own begins behind that.
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        guarded = path.startswith(_GUARDED)
        if guarded and self._keys and not self._known(headers.get("authorization", "")):
            return ApiError(
                401,
                "this server wants an API key, as in `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._settings.max_body_bytes:
            return ApiError(413, _too_large(self._settings.max_body_bytes), headers=_CLOSE)
        # Other types a browser lets pages of any origin send, without asking first.
        if guarded and scope["method"] == "POST" and not _is_json(headers.get("content-type", "")):
            return ApiError(
                400, "the Content-Type has to be application/json", code="invalid_content_type"
            )
        return None

    def _known(self, authorization: str) -> bool:
        kind, _, key = authorization.partition(" ")
        shown = _digest(key.strip())
        # All are compared, so that the time tells nothing.
        same = [hmac.compare_digest(shown, known) for known in self._keys]
        return kind.lower() == "bearer" and any(same)


class _Limited:
    """A request's body, of which too much or too late is refused."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most = receive, most
        self._seen, self._whole = 0, False
        self._deadline = asyncio.get_running_loop().time() + _BODY_SECONDS

    async def __call__(self) -> MutableMapping[str, Any]:  # Any: ASGI's messages
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            text = f"the request was not there after {_BODY_SECONDS:.0f} s"
            raise HTTPException(408, text, _CLOSE) from error
        self._seen += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._seen > self._most:
            raise HTTPException(413, _too_large(self._most), _CLOSE)
        return message


_CLOSE = {"Connection": "close"}


def _too_large(most: int) -> str:
    return f"the request is larger than the {most} bytes that this server reads"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _is_json(header: str) -> bool:
    kind, _, form = header.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (form == "json" or form.endswith("+json"))


def _host(header: str) -> str:
    """A Host header without its port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0].lower()


def _line(scope: Scope, status: int, seconds: float, name: str) -> str:
    path = quote(scope["path"], safe="/")[:200]
    line = f"{scope['method']} {path} {status} {seconds:.3f}s id={name}"
    usage: Callable[[], dict[str, Any]] | None = scope.get(USAGE)
    if usage is not None:
        told = usage()
        line += f" prompt={told['prompt_tokens']} completion={told['completion_tokens']}"
    if CUT_OFF in scope:
        line += f" cut_off={scope[CUT_OFF]}"
    return line
