"""The files of the page that comes with the server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from fastapi import FastAPI

from specdec.serving import errors
from specdec.serving.pages import router


def test_the_page_may_load_nothing_of_others(tmp_path: Path) -> None:
    """Would catch a page whose scripts may come from anywhere, a file that is missing and fails
    with 500, and a path that leads out of the folder.
    """
    (tmp_path / "index.html").write_text("<p>hello")
    app = FastAPI()
    errors.install(app)
    app.include_router(router(tmp_path))

    async def get(*paths: str) -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return [await client.get(path) for path in paths]

    page, script, outside = asyncio.run(get("/", "/page.js", "/../pages.py"))
    assert page.text == "<p>hello"
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' data: blob:;")
    assert script.status_code == outside.status_code == 404
    assert script.json()["error"]["message"]
