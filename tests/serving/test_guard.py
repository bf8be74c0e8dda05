"""Who may ask a server, and with what."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from specdec import AsyncEngine
from specdec.demo import Demo
from specdec.serving.app import create_app
from specdec.serving.settings import Settings
from support.servers import PATIENCE, Running, running

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(demo: Demo) -> Iterator[Running]:
    with running(demo) as there:
        yield there


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as there:
        yield there


def hello() -> dict[str, Any]:
    """A small request."""
    return {"model": "demo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


def test_headers_are_not_read_without_end(server: Running, client: httpx.Client) -> None:
    """Would catch a parser without a limit: headers come before any key, and stay in memory."""
    address = urlsplit(server.url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port), PATIENCE) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n")
        line, sent = b"X-A: " + b"a" * 8000 + b"\r\n", 0
        with suppress(ConnectionError):
            while sent < 4 << 20:
                connection.sendall(line)
                sent += len(line)
            connection.sendall(b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert client.get("/health").status_code == 200


TYPES = ("text/plain", "text/plain; a=application/json", "application/x-www-form-urlencoded", None)


@pytest.mark.parametrize("kind", TYPES)
def test_no_page_of_another_origin_may_ask(client: httpx.Client, kind: str | None) -> None:
    """Would catch a request that browsers send without asking first: those of other types than
    JSON's they let any page send.
    """
    headers = {} if kind is None else {"Content-Type": kind}
    response = client.post(CHAT, content=json.dumps(hello()), headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_content_type"
    json_too = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post(CHAT, content=json.dumps(hello()), headers=json_too).status_code == 200


def test_refusals_can_be_read_by_pages_that_may_ask(demo: Demo) -> None:
    """Would catch a refusal that has no CORS headers: the page sees a failed connection instead of
    what is wrong. A browser's question beforehand has no key.
    """
    page = "http://page.example"
    with (
        running(demo, api_keys=("one",), cors_origins=(page,), max_body_bytes=50) as there,
        httpx.Client(base_url=there.url, timeout=PATIENCE, headers={"Origin": page}) as client,
    ):
        asks = {"Access-Control-Request-Method": "POST"}
        answers = {
            200: client.options(CHAT, headers=asks),
            401: client.post(CHAT, json=hello()),
            413: client.post(CHAT, json=hello(), headers={"Authorization": "Bearer one"}),
        }
        for status, response in answers.items():
            assert response.status_code == status
            assert response.headers["Access-Control-Allow-Origin"] == page
        other = client.get("/health", headers={"Origin": "http://other.example"})
        assert "Access-Control-Allow-Origin" not in other.headers


def test_keys_are_wanted_under_another_path_too(demo: Demo) -> None:
    """Would catch an application that is open to all once another one has it under a path."""
    engine = AsyncEngine(demo.model)
    with engine.threaded:
        app = create_app(engine, demo.processor, Settings(model="demo", api_keys=("one",)))

        async def ask(**headers: str) -> int:
            transport = httpx.ASGITransport(Starlette(routes=[Mount("/under", app)]))
            async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
                return (await client.get("/under/v1/models", headers=headers)).status_code

        assert asyncio.run(ask()) == 401
        assert asyncio.run(ask(Authorization="Bearer one")) == 200
