"""The page that comes with the server: three files, and a policy that lets them load no others."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from specdec.serving.errors import ApiError

FOLDER = Path(__file__).parent / "page"
_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def router(folder: Path = FOLDER) -> APIRouter:
    """Routes to the files of `folder`; 404 where one is missing."""
    routes = APIRouter(include_in_schema=False)
    for path, name in _FILES.items():
        _add(routes, path, folder / name)
    return routes


def _add(routes: APIRouter, path: str, file: Path) -> None:
    @routes.get(path)
    async def page() -> Response:
        if not file.is_file():
            raise ApiError(404, f"this copy of specdec has no {file.name}")
        return FileResponse(file, headers=_HEADERS)
